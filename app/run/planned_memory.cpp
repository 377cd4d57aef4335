#include "app/run/planned_memory.hpp"

#include <algorithm>
#include <map>

#include "app/plan/memory.hpp"
#include "app/run/memory_fit.hpp"
#include "app/run/rank_sizes.hpp"
#include "compute/weight_cut.hpp"

namespace atl {

namespace {

const char* kind_of(const compute::WeightInfo& info) {
  using compute::Weight;
  switch (info.id) {
    case Weight::embedding:
    case Weight::lm_head:
      return "embedding and head";
    case Weight::qkv:
    case Weight::o:
    case Weight::q_up:
    case Weight::k_up:
    case Weight::v_up:
      return "attention";
    case Weight::router:
      return "routers";
    case Weight::shared_gate:
    case Weight::shared_up:
    case Weight::shared_down:
      return "shared experts";
    case Weight::gate:
    case Weight::up:
    case Weight::down:
      return info.per_expert ? "experts" : "dense layers";
    default:
      return "norms and biases";
  }
}

/// Elements as the activations' type has them, or codes with their scales; a backend may pad or
/// keep vectors wider.
std::vector<std::pair<std::string, std::int64_t>> weights_by_kind(
    const compute::BackendOptions& options) {
  std::map<std::string, std::int64_t> sums;
  compute::for_each_weight(
      options.shape, options.part, [&](const compute::WeightInfo& info, int, int) {
        const auto own = compute::own_weight(options.shape, options.part, info);
        const bool matrix = info.use == compute::Use::matrix;
        const std::size_t element = matrix ? size_of(options.dtype) : sizeof(float);
        const Coding& coding = info.coding;
        sums[kind_of(info)] += coding.used()
                                   ? own.rows * (coding.row_bytes(own.cols) +
                                                 coding.groups(own.cols) * coding.scale_bytes())
                                   : own.num_elements() * static_cast<std::int64_t>(element);
      });
  return {sums.begin(), sums.end()};
}

/// Pages that the requests of an owner can use.
PagesWanted wanted_pages(const PlannedWorkload& work, int num_owners) {
  std::vector<std::int64_t> pages;
  for (const JobRequest& r : work.requests) {
    const std::int64_t tokens = r.prompt_tokens + std::max<std::int64_t>(0, r.new_tokens - 1);
    pages.push_back((tokens + page_tokens - 1) / page_tokens);
  }
  return pages_wanted(pages, num_owners);
}

std::int64_t pages_of(const compute::BackendOptions& options, const RankMemory& memory,
                      const PagesWanted& wanted) {
  const auto bytes = static_cast<std::int64_t>(memory.bytes);
  if (memory.cuda) return pages_on_device(options, bytes, wanted);
  return std::min(pages_in_host_memory(options, memory.bytes, wanted),
                  pages_beside(options, bytes));
}

}  // namespace

PlannedSizes planned_sizes(const PlanInput& input, const JobLayout& job,
                           const Placement& placement) {
  const RankModel model{input.config.shape, input.dtype, placement, job};
  const RankMemory memory{input.machine.memory_bytes, "", input.machine.cuda, true};
  const Mode mode = input.work.scoring ? Mode::score : Mode::generate;
  PlannedSizes sizes;
  sizes.batch = batch_options(input.run, model, mode);
  limit_to(std::ssize(input.work.requests), input.run, job.division().tp, sizes.batch);
  const PagesWanted wanted = wanted_pages(input.work, job.num_owners());
  constexpr PagesWanted more_than_any{1, std::int64_t{1} << 24};
  LayoutMemory& found = sizes.memory;
  found.pages = found.most_pages = more_than_any.useful;
  found.whole_output = job.division().tp > 1 && !input.run.tp_output;
  const int stage_ranks = job.ranks_of_stage();
  for (int stage = 0; stage < job.division().pp; ++stage) {
    std::optional<StageMemory> most;
    // Even shares differ by one at most, and their first or last rank has most; a placement by hand
    // may give any rank more.
    const int step = input.run.placement.empty() ? std::max(1, stage_ranks - 1) : 1;
    for (int place = 0; place < stage_ranks; place += step) {
      const int rank = stage * stage_ranks + place;
      compute::BackendOptions options =
          backend_options(rank, input.run, model, sizes.batch, std::max(1, input.run.threads));
      options.num_pages = 1;
      if (rank == 0) found.room = options;
      const compute::MemoryPlan plan =
          memory.cuda ? compute::cuda_memory_plan(options) : compute::cpu_memory_plan(options);
      found.pages = std::min(found.pages, pages_of(options, memory, wanted));
      found.most_pages = std::min(found.most_pages, pages_of(options, memory, more_than_any));
      if (found.whole_output && found.pages > 0) {
        compute::BackendOptions whole = options;
        whole.part.attention.output = compute::OutputCut::either;
        whole.num_pages = found.pages;
        const std::int64_t bytes = memory.cuda ? compute::cuda_memory_plan(whole).total()
                                               : compute::cpu_memory_plan(whole).total();
        found.whole_output = static_cast<double>(bytes) <= memory.bytes;
      }
      if (most && most->plan.total() >= plan.total()) continue;
      most = StageMemory{stage, rank, plan, weights_by_kind(options)};
    }
    found.stages.push_back(*most);
  }
  if (found.pages < wanted.largest) {
    const auto worst = std::max_element(
        found.stages.begin(), found.stages.end(),
        [](const StageMemory& a, const StageMemory& b) { return a.plan.total() < b.plan.total(); });
    found.problem =
        found.pages == 0
            ? fmt::format("a rank has {}, and weights of {} with buffers of {} take more",
                          gigabytes(static_cast<std::int64_t>(memory.bytes)),
                          gigabytes(worst->plan.weights), gigabytes(worst->plan.buffers()))
            : fmt::format(
                  "a request takes {} tokens of KV cache, and {} fit beside weights of {} "
                  "and buffers of {}",
                  wanted.largest * page_tokens, found.pages * page_tokens,
                  gigabytes(worst->plan.weights), gigabytes(worst->plan.buffers()));
  }
  return sizes;
}

}  // namespace atl
