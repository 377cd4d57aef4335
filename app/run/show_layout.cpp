#include "app/run/show_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "app/config_layout.hpp"
#include "app/model/checked_config.hpp"
#include "app/model/described_model.hpp"
#include "app/plan/memory.hpp"
#include "app/run/placement_file.hpp"
#include "app/run/rank_sizes.hpp"
#include "compute/error.hpp"
#include "compute/memory_plan.hpp"
#include "io/model_file.hpp"

namespace atl {

namespace {

/// What a rank takes; its KV cache is of one page.
struct RankNeeds {
  compute::BackendOptions options;
  compute::MemoryPlan plan;
};

RankNeeds needs_of_rank(const RunOptions& options, const RankModel& model, int rank, bool cuda) {
  BatchOptions batch = batch_options(options, model, Mode::generate);
  limit_to(std::numeric_limits<std::int64_t>::max(), options, model.job.division().tp, batch);
  RankNeeds needs{backend_options(rank, options, model, batch, 1), {}};
  needs.options.num_pages = 1;
  needs.plan =
      cuda ? compute::cuda_memory_plan(needs.options) : compute::cpu_memory_plan(needs.options);
  return needs;
}

std::string gigabytes(std::int64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) * 1e-9);
}

/// Of one stage, by the rank of its first network that takes most.
std::string memory_line(const RunOptions& options, const ModelConfig& config, DType dtype,
                        const JobLayout& job, int stage, bool cuda, double memory_bytes) {
  std::optional<RankNeeds> most;
  for (int place = 0; place < job.ranks_of_stage(); ++place) {
    const int rank = stage * job.ranks_of_stage() + place;
    const Placement placement = placement_of(options, config.shape, job.exchange_of(rank));
    RankNeeds needs = needs_of_rank(options, {config.shape, dtype, placement, job}, rank, cuda);
    if (!most || needs.plan.total() > most->plan.total()) most = std::move(needs);
  }
  const compute::MemoryPlan& plan = most->plan;
  std::string line = fmt::format("stage {}: weights {}, buffers {}, KV cache {:.3f} MB a token",
                                 stage, gigabytes(plan.weights), gigabytes(plan.buffers()),
                                 static_cast<double>(plan.kv_cache) / page_tokens * 1e-6);
  if (memory_bytes <= 0) return line + "\n";
  const auto bytes = static_cast<std::int64_t>(memory_bytes);
  std::int64_t pages = 0;
  if (cuda) {
    constexpr std::int64_t more_than_any = std::int64_t{1} << 24;
    pages = fitting_pages(most->options, bytes, more_than_any);
  } else {
    pages = std::max<std::int64_t>(0, bytes - plan.weights - plan.buffers()) /
            std::max<std::int64_t>(1, plan.kv_cache);
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

std::string layout_text(const RunOptions& options, const ModelConfig& config, DType dtype,
                        const JobLayout& job, bool cuda, double memory_bytes) {
  std::string text = text_of(job, config.shape);
  text += fmt::format("memory of a rank, {} on {}:\n", name_of(dtype), cuda ? "GPUs" : "CPUs");
  for (int stage = 0; stage < job.division().pp; ++stage) {
    text += memory_line(options, config, dtype, job, stage, cuda, memory_bytes);
  }
  return text;
}

std::string layout_text(const LayoutOptions& options) {
  DType dtype{};
  const ModelConfig config = config_of(options, dtype);
  const RunOptions& run = options.run;
  const Division division = division_of(run, options.ranks);
  require_divides(division, config.shape);
  constexpr int usual = 8;
  const int alike = options.ranks % usual == 0 ? usual : options.ranks;
  const std::string per_node = run.node_ranks.empty() ? std::to_string(alike) : run.node_ranks;
  const JobLayout job(division, nodes_of_ranks(per_node, options.ranks));
  return layout_text(run, config, run.dtype.value_or(dtype), job, run.backend != BackendKind::cpu,
                     options.memory_gb * 1e9);
}

}  // namespace atl
