#include "app/run/sizes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "app/plan/memory.hpp"
#include "app/plan/part.hpp"
#include "app/run/placement_file.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/route.hpp"
#include "compute/memory_plan.hpp"

namespace atl {

namespace {

constexpr int page_tokens = 64;

BatchOptions batch_options(const RunOptions& options, const Sized& sized) {
  BatchOptions batch;
  batch.mode = sized.mode;
  batch.max_tokens = options.max_tokens;
  // Limits are of a rank, and sequences of an owner.
  batch.max_sequences = options.max_sequences * sized.job.division().tp;
  batch.num_flights = most_flights(options, sized.job);
  batch.max_chunks = batch.num_flights > 1 ? 1 : most_chunks(options, sized.job);
  batch.page_tokens = page_tokens;
  batch.stop_token_ids = sized.model.config.stop_token_ids;
  batch.dtype = sized.model.dtype;
  return batch;
}

/// Once it is known how many requests there are at most.
void limit_to(std::int64_t requests, const RunOptions& options, int tp, BatchOptions& batch) {
  const auto of_flight = [&](int number) {
    return (number + batch.num_flights - 1) / batch.num_flights;
  };
  batch.max_sequences = static_cast<int>(
      std::min<std::int64_t>(of_flight(batch.max_sequences), std::max<std::int64_t>(1, requests)));
  batch.max_pass_tokens = std::max(of_flight(options.step_tokens * tp), batch.max_sequences);
  batch.min_chunk_tokens = std::min(options.min_chunk_tokens * tp, batch.max_pass_tokens);
}

compute::BackendOptions backend_options(int rank, const RunOptions& run, const Sized& sized,
                                        const BatchOptions& batch) {
  const ModelShape& shape = sized.model.config.shape;
  const Placement& placement = sized.placement;
  const Layout layout = sized.job.exchange_of(rank);
  // Of an owner's tokens each of its ranks has a part.
  const int tp = sized.job.division().tp;
  const auto part_of_owner = [tp](int tokens) { return (tokens + tp - 1) / tp; };
  const auto chunk_rows = (batch.max_pass_tokens + batch.max_chunks - 1) / batch.max_chunks;
  compute::BackendOptions options;
  options.shape = shape;
  options.dtype = sized.model.dtype;
  options.part = part_of(sized.job, placement, shape, rank, run.tp_output);
  options.across = may_take(run, sized.job, Route::nodes);
  options.num_threads = sized.ranks.threads;
  options.page_tokens = page_tokens;
  options.max_chunk_tokens = part_of_owner(
      std::min(batch.max_pass_tokens, std::max(chunk_rows + 1, 2 * batch.min_chunk_tokens)));
  options.num_chunks = std::max(batch.max_chunks, batch.num_flights);
  if (!run.chunks && batch.max_chunks > 1) {
    // Two chunks take a whole pass, four as many tokens each as they get then, and so on. The first
    // takes what is too little to be cut.
    for (int chunk = 0; chunk < batch.max_chunks; ++chunk) {
      int count = 2;
      while (count <= chunk) count *= 2;
      options.chunk_tokens.push_back(
          part_of_owner((batch.max_pass_tokens + count - 1) / count + 1));
    }
    const int uncut = std::min(batch.max_pass_tokens, 2 * batch.min_chunk_tokens);
    options.chunk_tokens.front() = std::max(options.chunk_tokens.front(), part_of_owner(uncut));
    options.max_chunk_tokens = options.chunk_tokens.front();
  }
  // All that the others send goes to this rank's experts.
  options.most_receive_rows = std::int64_t{layout.num_ranks() - 1} * options.max_chunk_tokens *
                              std::min<std::int64_t>(shape.top_k, options.part.most_experts());
  // What an even routing brings, at least.
  options.receive_rows =
      std::min(options.most_receive_rows, std::int64_t{options.max_chunk_tokens} * shape.top_k);
  return options;
}

/// Asked for, or what the requests can use and this rank's memory allows.
std::int64_t kv_pages(const RunOptions& options, const Sized& sized, const Sizes& sizes,
                      const PagesWanted& wanted) {
  if (options.kv_tokens > 0) return (options.kv_tokens + page_tokens - 1) / page_tokens;
  const Ranks& ranks = sized.ranks;
  return ranks.choice.cuda
             ? pages_on_device(sizes.backend, ranks.choice.share.memory_bytes, wanted)
             : pages_in_host_memory(sizes.backend, ranks.given.mine.memory_bytes, wanted);
}

}  // namespace

Sizes sizes_of(const comm::Communicator& world, const RunOptions& options, const Sized& sized) {
  Sizes sizes;
  sizes.batch = batch_options(options, sized);
  RequestNeeds needs;
  if (world.rank() == 0) {
    needs = needs_of(sized.requests, sized.all_read, sized.model.config.shape.max_positions,
                     sized.job.num_owners(), sizes.batch);
  }
  needs = world.broadcast_value(needs, 0);
  limit_to(needs.count, options, sized.job.division().tp, sizes.batch);
  world.agree([&] { sizes.backend = backend_options(world.rank(), options, sized, sizes.batch); });
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
  if (!sized.ranks.choice.cuda) return sizes;
  world.agree([&] {
    // Buffers for received rows never grow in a pass, where memory is left beside all else.
    const compute::BackendOptions most = for_any_routing(sizes.backend);
    if (fits_device(most, sized.ranks.choice.share.memory_bytes)) sizes.backend = most;
  });
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
