#include "app/run/head_exchange.hpp"

#include "compute/sampling.hpp"

namespace atl {

namespace {

comm::LaneOptions lane_options(Mode mode, comm::TransportKind transport) {
  comm::LaneOptions options;
  // What heads give is in host memory, whatever rows travel by.
  options.transport = comm::info_of(transport).staged ? comm::TransportKind::pairwise : transport;
  options.row_bytes = mode == Mode::score ? sizeof(ScoredToken) : sizeof(SampledToken);
  options.peers = comm::Peers{};
  return options;
}

}  // namespace

HeadExchange::HeadExchange(const Groups& groups, Mode mode, comm::TransportKind transport)
    : mode_(mode),
      division_(groups.job().division()),
      place_(groups.of(Share::sequences).rank()),
      world_ranks_(groups.world_ranks(Share::sequences)),
      lane_(groups.of(Share::sequences), lane_options(mode, transport)),
      move_(static_cast<int>(world_ranks_.size())) {}

comm::Awaited HeadExchange::awaited() const {
  comm::Awaited awaited = lane_.awaited();
  awaited.rename(world_ranks_);
  return awaited;
}

void HeadExchange::post(ChunkBatch& batch) {
  const auto rows = static_cast<std::int64_t>(batch.tokens.size());
  const int last_stage = (division_.pp - 1) * division_.tp;  // its first rank's place
  const auto heads_of = [&](int place) {
    if (place < last_stage) return OutcomeRange{};
    const RowRange own = rows_of_member(rows, place - last_stage, division_.tp);
    return outcomes_of(batch, heads_in(batch, own.first, own.size()));
  };
  const OutcomeRange mine = heads_of(place_);
  for (int place = 0; place < static_cast<int>(world_ranks_.size()); ++place) {
    const auto at = static_cast<std::size_t>(place);
    const OutcomeRange theirs = place == place_ ? OutcomeRange{} : heads_of(place);
    move_.send_counts[at] = place == place_ ? 0 : static_cast<int>(mine.count);
    move_.send_offsets[at] = static_cast<int>(mine.first);
    move_.recv_counts[at] = static_cast<int>(theirs.count);
    move_.recv_offsets[at] = static_cast<int>(theirs.first);
  }
  if (mode_ == Mode::score) {
    batch.scored.resize(batch.outcomes);
    lane_.start(move_, batch.scored.data(), batch.scored.data());
  } else {
    batch.sampled.resize(batch.outcomes);
    lane_.start(move_, batch.sampled.data(), batch.sampled.data());
  }
}

}  // namespace atl
