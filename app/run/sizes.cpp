#include "app/run/sizes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "app/plan/memory.hpp"
#include "app/run/memory_fit.hpp"
#include "app/run/rank_sizes.hpp"
#include "app/run/request_needs.hpp"
#include "compute/error.hpp"
#include "compute/memory_plan.hpp"

namespace atl {

namespace {

/// Asked for, or what the requests can use and this rank's memory allows.
std::int64_t kv_pages(const RunOptions& options, const Sized& sized, const Sizes& sizes,
                      const PagesWanted& wanted) {
  if (options.kv_tokens > 0) return (options.kv_tokens + page_tokens - 1) / page_tokens;
  const RankMemory memory = sized.ranks.memory();
  const auto bytes = static_cast<std::int64_t>(memory.bytes);
  if (memory.cuda) return pages_on_device(sizes.backend, bytes, wanted);
  const std::int64_t pages = pages_in_host_memory(sizes.backend, memory.bytes, wanted);
  return memory.stated ? std::min(pages, pages_beside(sizes.backend, bytes)) : pages;
}

/// Whether all that these options say fits into what this rank has.
bool fits(const compute::BackendOptions& options, const Ranks& ranks) {
  const RankMemory memory = ranks.memory();
  const auto bytes = static_cast<std::int64_t>(memory.bytes);
  return memory.cuda ? fits_device(options, bytes)
                     : compute::cpu_memory_plan(options).total() <= bytes;
}

/// The CUDA backend refuses what does not fit by itself.
void require_fits(const compute::BackendOptions& options, const Ranks& ranks) {
  if (ranks.choice.cuda || !ranks.memory_stated || fits(options, ranks)) return;
  const compute::MemoryPlan plan = compute::cpu_memory_plan(options);
  const std::int64_t pages = pages_beside(options, static_cast<std::int64_t>(ranks.memory().bytes));
  fail(
      "{} of KV cache take {}, beside weights of {} and buffers of {}: more than --memory-limit; "
      "{}",
      fmt::format("{} tokens", options.num_pages * page_tokens), gigabytes(plan.kv_cache),
      gigabytes(plan.weights), gigabytes(plan.buffers()),
      pages > 0 ? fmt::format("--kv-tokens {} would fit", pages * page_tokens)
                : "use a smaller --step-tokens, or more ranks");
}

/// Collective. Without --tp-output all ranks have all of attention's output projection where that
/// fits beside everything else on each of them: no KV page and no room for rows is given up for it.
void take_whole_output(const comm::Communicator& world, const RunOptions& options,
                       const Ranks& ranks, compute::BackendOptions& backend) {
  if (options.tp_output || !backend.part.attention.shared()) return;
  compute::BackendOptions whole = backend;
  whole.part.attention.output = compute::OutputCut::either;
  std::int64_t fitting = 0;
  world.agree([&] { fitting = fits(whole, ranks) ? 1 : 0; });
  world.allreduce(std::span(&fitting, 1), comm::Communicator::Reduce::min);
  if (fitting == 1) backend = whole;
}

}  // namespace

Sizes sizes_of(const comm::Communicator& world, const RunOptions& options, const Sized& sized) {
  Sizes sizes;
  const RankModel model{sized.model.config.shape, sized.model.dtype, sized.placement, sized.job};
  sizes.batch = batch_options(options, model, sized.mode);
  sizes.batch.stop_token_ids = sized.model.config.stop_token_ids;
  RequestNeeds needs;
  if (world.rank() == 0) {
    needs = needs_of(sized.requests, sized.all_read, sized.model.config.shape.max_positions,
                     sized.job.num_owners(), sizes.batch);
  }
  needs = world.broadcast_value(needs, 0);
  limit_to(needs.count, options, sized.job.division().tp, sizes.batch);
  world.agree([&] {
    sizes.backend = backend_options(world.rank(), options, model, sizes.batch, sized.ranks.threads);
  });
  std::int64_t pages = 0;
  world.agree([&] { pages = kv_pages(options, sized, sizes, needs.pages); });
  world.allreduce(std::span(&pages, 1), comm::Communicator::Reduce::min);
  sizes.batch.num_pages = std::max<std::int64_t>(1, pages);
  sizes.backend.num_pages = sizes.batch.num_pages;
  sizes.room = room_for(needs, sizes.batch);
  world.agree([&] { require_fits(sizes.backend, sized.ranks); });
  world.agree([&] {
    if (!sized.ranks.choice.cuda) return;
    // Buffers for received rows never grow in a pass, where memory is left beside all else.
    const compute::BackendOptions most = for_any_routing(sizes.backend);
    if (fits(most, sized.ranks)) sizes.backend = most;
  });
  take_whole_output(world, options, sized.ranks, sizes.backend);
  return sizes;
}

std::string kv_limit(const RunOptions& options, const Ranks& ranks) {
  if (options.kv_tokens > 0) return "as --kv-tokens says";
  if (ranks.choice.cuda) return "what the memory of a GPU leaves beside the weights";
  const std::string by = ranks.memory().by;
  return fmt::format("{:.0f} % of its memory{}{}", kv_share_of_host_memory * 100,
                     by.empty() ? "" : ", which is limited by ", by);
}

}  // namespace atl
