#include "app/config_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <string_view>

#include "app/config_choice.hpp"
#include "app/model/model_config.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

/// A number of ranks that share something, or of networks or stages.
void add_divisor(CLI::App& app, const char* name, int& value, const char* about) {
  app.add_option(name, value, about)->check(CLI::Range(1, 65536))->capture_default_str();
}

/// What is wrong with a number of chunks.
std::string problem_of_chunks(const std::string& text) {
  return text == "auto" ? "" : CLI::Range(1, max_chunks)(text);
}

/// What is wrong with the type of sums; a flag alone is "true", also in a file of options.
std::string problem_of_sum(const std::string& text) {
  return text == "true" || text == "float32" || text == "bf16"
             ? ""
             : fmt::format("{} is neither float32 nor bf16", text);
}

/// "ep64-tp8" -> {ep: 64, tp: 8}.
std::map<std::string, int, std::less<>> parts_of(const std::string& text) {
  std::map<std::string, int, std::less<>> parts;
  std::string_view rest = text;
  for (bool more = true; more;) {
    const std::size_t dash = rest.find('-');
    const std::string_view part = rest.substr(0, dash);
    const std::size_t digits = std::min(part.find_first_of("0123456789"), part.size());
    const std::string name(part.substr(0, digits));
    int number = 0;
    const char* end = part.data() + part.size();
    const auto [stop, error] = std::from_chars(part.data() + digits, end, number);
    const bool known =
        name == "dp" || name == "pp" || name == "ep" || name == "tp" || name == "etp";
    if (!known || error != std::errc() || stop != end || number < 1 || number > 65536 ||
        !parts.emplace(name, number).second) {
      throw UsageError(fmt::format(
          "--layout {}: \"{}\" is no part of a layout; give some of dpN (networks), ppN (stages), "
          "epN (expert parallel), etpN (ranks for each expert) and tpN (ranks for attention) with "
          "dashes between, each once: ep16, ep64-tp8, tp8-pp2",
          text, part));
    }
    more = dash != std::string_view::npos;
    if (more) rest.remove_prefix(dash + 1);
  }
  return parts;
}

}  // namespace

void add_layout_parts(CLI::App& app, RunOptions& o) {
  add_choice(app, "--route", o.route, {std::nullopt, Route::flat, Route::nodes},
             "How tokens reach their experts: each row straight to its rank, or once to each node");
  CLI::Option* slots =
      app.add_option("--slots", o.slots,
                     "Experts of a layer on each rank, replicas where there are more places; 0: "
                     "equal shares, one where there are more ranks than experts")
          ->check(CLI::Range(0, 4096))
          ->capture_default_str();
  app.add_option("--placement", o.placement, "Which rank has which expert of which layer (JSON)")
      ->excludes(slots);
  app.add_option("--node-ranks", o.node_ranks,
                 "Ranks on each node, e.g. 4 or 3,5,1, where tokens should travel as if nodes were "
                 "so (sockets, say); default: ranks that share memory");
  add_divisor(app, "--replicas", o.division.replicas, "Networks, each with the whole model");
  add_divisor(app, "--pp", o.division.pp, "Stages of a network, each with some layers");
  add_divisor(app, "--tp", o.division.tp, "Ranks that share attention and its sequences");
  const auto take_expert_tp = [&o](const std::string& text) {
    o.expert_tp = text == "auto" ? std::nullopt : std::optional<int>(std::stoi(text));
  };
  app.add_option_function<std::string>(
         "--expert-tp", take_expert_tp,
         "Ranks that share each expert; auto: more than one where a rank's memory is too small")
      ->check(
          [](const std::string& text) { return text == "auto" ? "" : CLI::Range(1, 65536)(text); })
      ->default_str("auto");
  CLI::Option* output = add_choice(
      app, "--tp-output", o.tp_output,
      {std::nullopt, compute::OutputCut::columns, compute::OutputCut::rows},
      "Attention's output projection with --tp: cut by columns, or whole on each rank for its own "
      "rows; auto: by what a pass has of rows, where memory is left for the whole");
  const auto take_sum = [&o](const std::string& text) {
    o.tp_output = text == "bf16" ? compute::OutputCut::sum_bf16 : compute::OutputCut::sum;
  };
  app.add_option_function<std::string>(
         "--tp-sum", take_sum,
         "Add attention's output up over ranks, for comparison, from summands that travel in "
         "float32 (the default) or bf16: changes the results' last bits")
      ->expected(0, 1)
      ->check(problem_of_sum)
      ->excludes(output);
  CLI::Option* layout =
      app.add_option("--layout", o.layout,
                     "All of it in one word, e.g. ep16, ep64-tp8, or tp8-pp2 with experts cut over "
                     "the 8");
  for (const char* name : {"--replicas", "--pp", "--tp", "--expert-tp"})
    layout->excludes(app.get_option(name));
}

void add_foreign_machine(CLI::App& app, RunOptions& o) {
  app.add_flag("--foreign-machine", o.foreign_machine,
               "Plan with a machine that was measured on another processor than this one");
}

void refuse_auto_layout(CLI::App& app) {
  app.get_option("--layout")->check([](const std::string& text) {
    return text == "auto" ? "auto is for `atoll run`; `atoll plan --all-layouts` ranks layouts"
                          : "";
  });
}

void add_run_layout(CLI::App& app, RunOptions& o) {
  add_layout_parts(app, o);
  CLI::Option* layout = app.get_option("--layout");
  layout->description(layout->get_description() + "; auto: what the planner ranks first");
  app.add_option("--machine", o.machine,
                 "With --layout auto: the machine, a file of perf/calibrate")
      ->needs(layout);
  add_foreign_machine(app, o);
  app.add_flag("--show-layout", o.show_layout, "Say who is with whom, and stop");
}

CLI::App& add_layout(CLI::App& app, LayoutOptions& o) {
  CLI::App& layout = *app.add_subcommand(
      "layout", "Show who is with whom in a job, and what fits into the memory of its ranks");
  CLI::Option* preset =
      layout.add_option("--preset", o.preset, "Which model")->check(CLI::IsMember(preset_names()));
  CLI::Option* config =
      layout.add_option("--config", o.config, "A model of this description instead (JSON)")
          ->excludes(preset);
  layout.add_option("--model", o.model, "A model file instead")->excludes(preset)->excludes(config);
  layout.add_option("--ranks", o.ranks, "How many ranks")
      ->check(CLI::Range(1, 1 << 16))
      ->required();
  layout.add_option("--memory-gb", o.run.memory_gb, "Memory of a rank, in 10^9 bytes")
      ->check(CLI::Range(0.0, 1e6));
  add_choice(layout, "--backend", o.run.backend,
             {std::nullopt, BackendKind::cpu, BackendKind::cuda},
             "Where the arithmetic runs; auto: cuda");
  add_choice(layout, "--dtype", o.run.dtype,
             {std::nullopt, DType::bfloat16, DType::float16, DType::float32},
             "Activations and GEMM operands; auto: as the model's");
  add_layout_parts(layout, o.run);
  refuse_auto_layout(layout);
  add_pass_sizes(layout, o.run);
  return layout;
}

void add_chunks(CLI::App& app, RunOptions& o) {
  const auto take_chunks = [&o](const std::string& text) {
    o.chunks = text == "auto" ? std::nullopt : std::optional<int>(std::stoi(text));
  };
  app.add_option_function<std::string>("--chunks", take_chunks,
                                       "Micro-batches that overlap, at most (1 to 8); auto: as "
                                       "links and arithmetic make it worth")
      ->check(problem_of_chunks)
      ->default_str(o.chunks ? std::to_string(*o.chunks) : "auto");
  app.add_flag("--no-overlap", o.no_overlap, "One step after the other (same results)");
}

void add_pass_sizes(CLI::App& app, RunOptions& o) {
  app.add_option("--max-sequences", o.max_sequences, "Sequences in flight per rank")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--step-tokens", o.step_tokens, "Tokens per rank in one step; prompts are cut")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
}

Division division_of(const RunOptions& options, int num_ranks) {
  if (options.layout.empty() || options.layout == "auto") {
    Division division = options.division;
    division.expert_tp = options.expert_tp.value_or(1);
    return division;
  }
  const auto parts = parts_of(options.layout);
  const auto part = [&](const char* name, int otherwise) {
    const auto found = parts.find(name);
    return found == parts.end() ? otherwise : found->second;
  };
  Division division;
  division.tp = part("tp", 1);
  division.pp = part("pp", 1);
  const int ep = part("ep", 1);
  // Without expert parallelism experts are cut over the ranks that share attention.
  division.expert_tp = part("etp", parts.contains("ep") ? 1 : division.tp);
  // No int holds every product of such numbers.
  const std::uint64_t network = static_cast<std::uint64_t>(division.pp) *
                                static_cast<std::uint64_t>(ep) *
                                static_cast<std::uint64_t>(division.expert_tp);
  const auto ranks = static_cast<std::uint64_t>(num_ranks);
  division.replicas = part("dp", static_cast<int>(std::max<std::uint64_t>(1, ranks / network)));
  const std::uint64_t wanted = network * static_cast<std::uint64_t>(division.replicas);
  if (network > ranks || wanted != ranks) {
    throw UsageError(fmt::format(
        "--layout {} is of {} ranks{}, and there are {}", options.layout, wanted,
        parts.contains("dp") ? "" : fmt::format(", or any multiple of {}", network), num_ranks));
  }
  return division;
}

}  // namespace atl
