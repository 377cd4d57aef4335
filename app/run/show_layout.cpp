#include "app/run/show_layout.hpp"

#include <fmt/format.h>

#include <optional>

#include "app/model/checked_config.hpp"
#include "app/model/described_model.hpp"
#include "app/plan/memory.hpp"
#include "app/run/rank_sizes.hpp"
#include "compute/error.hpp"
#include "compute/memory_plan.hpp"
#include "io/model_file.hpp"

namespace atl {

namespace {

/// Of one stage, by the rank of its first network that takes most.
std::string memory_line(const RunOptions& options, const DividedModel& model, int stage,
                        const RankMemory& memory) {
  const JobLayout& job = model.job;
  std::optional<RankNeeds> most;
  for (int place = 0; place < job.ranks_of_stage(); ++place) {
    const int rank = stage * job.ranks_of_stage() + place;
    RankNeeds needs = needs_of_rank(options, model, rank, memory.cuda);
    if (!most || needs.plan.total() > most->plan.total()) most = std::move(needs);
  }
  const compute::MemoryPlan& plan = most->plan;
  std::string line = fmt::format("stage {}: weights {}, buffers {}, KV cache {:.3f} MB a token",
                                 stage, gigabytes(plan.weights), gigabytes(plan.buffers()),
                                 static_cast<double>(plan.kv_cache) / page_tokens * 1e-6);
  if (job.division().tp > 1 && !options.tp_output) {
    compute::BackendOptions whole = most->options;
    whole.part.attention.output = compute::OutputCut::either;
    const std::int64_t weights = memory.cuda ? compute::cuda_memory_plan(whole).weights
                                             : compute::cpu_memory_plan(whole).weights;
    line += fmt::format(", the whole of attention's output projection {} more",
                        gigabytes(weights - plan.weights));
  }
  if (memory.bytes <= 0) return line + "\n";
  const auto bytes = static_cast<std::int64_t>(memory.bytes);
  std::int64_t pages = 0;
  if (memory.cuda) {
    constexpr std::int64_t more_than_any = std::int64_t{1} << 24;
    pages = fitting_pages(most->options, bytes, more_than_any);
  } else {
    pages = pages_beside(most->options, bytes);
  }
  if (pages == 0) {
    return line + fmt::format("; they do not fit into {}\n", gigabytes(bytes));
  }
  return line + fmt::format("; {} hold {} tokens of {}\n", gigabytes(bytes), pages * page_tokens,
                            job.division().tp == 1 ? "each rank's sequences"
                                                   : "the sequences that its ranks share");
}

ModelConfig config_of(const LayoutOptions& options, DType& dtype) {
  if (!options.model.empty()) {
    const io::ModelFileReader file(options.model);
    ModelConfig config = checked_config(file);
    dtype = config.dtype;
    return config;
  }
  if (options.preset.empty() && options.config.empty()) {
    throw UsageError("of which model is the layout? Give --preset, --config or --model");
  }
  ModelConfig config =
      options.config.empty() ? preset(options.preset) : described_model(options.config);
  dtype = config.dtype;
  return config;
}

}  // namespace

std::string layout_text(const RunOptions& options, const DividedModel& model,
                        const RankMemory& memory) {
  std::string text = text_of(model.job, model.shape);
  text += fmt::format("memory of a rank, {} on {}:\n", name_of(model.dtype),
                      memory.cuda ? "GPUs" : "CPUs");
  for (int stage = 0; stage < model.job.division().pp; ++stage) {
    text += memory_line(options, model, stage, memory);
  }
  if (memory.bytes > 0 && !fits(options, model, memory)) {
    text += what_would_fit(options, model.shape, model.dtype, model.job.num_ranks(), memory) + "\n";
  }
  return text;
}

std::string layout_text(const LayoutOptions& options) {
  DType dtype{};
  const ModelConfig config = config_of(options, dtype);
  const RunOptions& run = options.run;
  dtype = run.dtype.value_or(dtype);
  constexpr int usual = 8;
  const int alike = options.ranks % usual == 0 ? usual : options.ranks;
  const std::string per_node = run.node_ranks.empty() ? std::to_string(alike) : run.node_ranks;
  const RankMemory memory{run.memory_gb * 1e9, "", run.backend != BackendKind::cpu, true};
  std::optional<JobLayout> first;
  for (const Division& division : open_divisions(run, config.shape, options.ranks)) {
    require_divides(division, config.shape);
    const JobLayout job(division, nodes_of_ranks(per_node, options.ranks));
    if (memory.bytes <= 0 || fits(run, {config.shape, dtype, job}, memory)) {
      return layout_text(run, {config.shape, dtype, job}, memory);
    }
    if (!first) first = job;
  }
  return layout_text(run, {config.shape, dtype, *first}, memory);
}

}  // namespace atl
