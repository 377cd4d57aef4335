#include "app/run/sizes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "app/plan/memory.hpp"
#include "app/run/placement_file.hpp"
#include "app/run/rank_sizes.hpp"
#include "app/run/request_needs.hpp"
#include "compute/memory_plan.hpp"

namespace atl {

namespace {

/// Asked for, or what the requests can use and this rank's memory allows.
std::int64_t kv_pages(const RunOptions& options, const Sized& sized, const Sizes& sizes,
                      const PagesWanted& wanted) {
  if (options.kv_tokens > 0) return (options.kv_tokens + page_tokens - 1) / page_tokens;
  const Ranks& ranks = sized.ranks;
  return ranks.choice.cuda
             ? pages_on_device(sizes.backend, ranks.choice.share.memory_bytes, wanted)
             : pages_in_host_memory(sizes.backend, ranks.given.mine.memory_bytes, wanted);
}

/// Whether all that these options say fits into what this rank has.
bool fits(const compute::BackendOptions& options, const Ranks& ranks) {
  if (ranks.choice.cuda) return fits_device(options, ranks.choice.share.memory_bytes);
  return static_cast<double>(compute::cpu_memory_plan(options).total()) <=
         ranks.given.mine.memory_bytes;
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
  world.agree([&] {
    // Without replicas asked for, requests are refused one by one where memory does not do.
    const bool placed = options.slots > 0 || !options.placement.empty();
    if (placed && !sized.ranks.choice.cuda) {
      const comm::Share& mine = sized.ranks.given.mine;
      require_weights_fit(sized.placement, compute::cpu_memory_plan(sizes.backend).weights,
                          mine.memory_bytes, mine.memory_by);
    }
    pages = kv_pages(options, sized, sizes, needs.pages);
  });
  world.allreduce(std::span(&pages, 1), comm::Communicator::Reduce::min);
  sizes.batch.num_pages = std::max<std::int64_t>(1, pages);
  sizes.backend.num_pages = sizes.batch.num_pages;
  sizes.room = room_for(needs, sizes.batch);
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
  const std::string& by = ranks.given.mine.memory_by;
  return fmt::format("{:.0f} % of its memory{}{}", kv_share_of_host_memory * 100,
                     by.empty() ? "" : ", which is limited by ", by);
}

}  // namespace atl
