#include "app/run/rank_sizes.hpp"

#include <algorithm>

#include "app/plan/part.hpp"
#include "app/run/prefix_report.hpp"
#include "app/run/route.hpp"
#include "app/run/speculation.hpp"

namespace atl {

BatchOptions batch_options(const RunOptions& options, const RankModel& model, Mode mode) {
  BatchOptions batch;
  batch.mode = mode;
  batch.max_tokens = options.max_tokens;
  // Limits are of a rank, and sequences of an owner.
  batch.max_sequences = options.max_sequences * model.job.division().tp;
  batch.num_flights = most_flights(options, model.job);
  batch.max_chunks = batch.num_flights > 1 ? 1 : most_chunks(options, model.job);
  batch.page_tokens = page_tokens;
  batch.dtype = model.dtype;
  if (why_no_speculation(options).empty()) batch.speculate = options.speculate;
  batch.share_prefixes = why_no_prefixes(options).empty();
  return batch;
}

void limit_to(std::int64_t requests, const RunOptions& options, int tp, BatchOptions& batch) {
  const auto of_flight = [&](int number) {
    return (number + batch.num_flights - 1) / batch.num_flights;
  };
  batch.max_sequences = static_cast<int>(
      std::min<std::int64_t>(of_flight(batch.max_sequences), std::max<std::int64_t>(1, requests)));
  batch.max_pass_tokens = std::max(of_flight(options.step_tokens * tp), batch.max_sequences);
  batch.min_chunk_tokens = std::min(options.min_chunk_tokens * tp, batch.max_pass_tokens);
}

compute::BackendOptions backend_options(int rank, const RunOptions& run, const RankModel& model,
                                        const BatchOptions& batch, int threads) {
  const ModelShape& shape = model.shape;
  const Layout layout = model.job.exchange_of(rank);
  // Of an owner's tokens each of its ranks has a part.
  const int tp = model.job.division().tp;
  const auto part_of_owner = [tp](int tokens) { return (tokens + tp - 1) / tp; };
  const auto chunk_rows = (batch.max_pass_tokens + batch.max_chunks - 1) / batch.max_chunks;
  compute::BackendOptions options;
  options.shape = shape;
  options.dtype = model.dtype;
  options.part = part_of(model.job, model.placement, shape, rank,
                         run.tp_output.value_or(compute::OutputCut::columns));
  options.across = may_take(run, model.job, Route::nodes);
  options.num_threads = threads;
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

}  // namespace atl
