#include "app/config_plan.hpp"

#include "app/config_choice.hpp"
#include "app/config_layout.hpp"
#include "app/model/model_config.hpp"

namespace atl {

CLI::App& add_plan(CLI::App& app, PlanOptions& o) {
  CLI::App& plan = *app.add_subcommand(
      "plan", "Say what of a job fits, which layout pays and how fast it will be, and draw it");
  CLI::Option* preset = plan.add_option("--preset", o.preset, "Which model");
  CLI::Option* config =
      plan.add_option("--config", o.config, "A model of this description instead (JSON)")
          ->excludes(preset);
  CLI::Option* model = plan.add_option("--model", o.model, "A model file instead")
                           ->excludes(preset)
                           ->excludes(config);
  plan.add_option("--hf", o.hf, "A Hugging Face folder instead: its config.json")
      ->excludes(preset)
      ->excludes(config)
      ->excludes(model);
  add_choice(plan, "--weights", o.weights, {KeptWeights::none, KeptWeights::coded},
             "What --hf or --config publishes in FP8, MXFP4 or INT4: unpacked, or kept as import "
             "--weights keep does")
      ->excludes(preset)
      ->excludes(model);
  plan.add_option("--cluster", o.cluster,
                  "The machine: a file of perf/machines, or of perf/calibrate (JSON)")
      ->required();
  plan.add_option("--workload", o.workload, "Prompts and new tokens (JSON)")->required();
  plan.add_option("--ranks", o.ranks, "How many ranks; 0: all of the machine")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  CLI::Option* routing =
      plan.add_option("--routing", o.routing,
                      "What tokens chose: a file of run --record-routing, or a .npy of shape "
                      "[tokens, layers, k]");
  plan.add_option("--skew", o.skew,
                  "Without --routing: sigma of the log-normal loads of a layer's experts; 0: "
                  "uniform")
      ->check(CLI::Range(0.0, 10.0))
      ->excludes(routing)
      ->capture_default_str();
  plan.add_option("--output", o.output, "Folder for the answer and its drawings; made if need be");
  add_choice(plan, "--dtype", o.run.dtype,
             {std::nullopt, DType::bfloat16, DType::float16, DType::float32},
             "Activations and GEMM operands; auto: as the model's");
  add_chunks(plan, o.run);
  add_layout_parts(plan, o.run);
  refuse_auto_layout(plan);
  add_foreign_machine(plan, o.run);
  CLI::Option* all = plan.add_flag("--all-layouts", o.all_layouts, "Rank all layouts that fit");
  for (const char* name : {"--layout", "--replicas", "--pp", "--tp", "--expert-tp"})
    all->excludes(plan.get_option(name));
  add_pass_sizes(plan, o.run);
  plan.add_option("--seed", o.seed, "Seed of loads and workload")->capture_default_str();
  return plan;
}

}  // namespace atl
