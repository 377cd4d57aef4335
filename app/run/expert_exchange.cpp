#include "app/run/expert_exchange.hpp"

#include <algorithm>

namespace atl {

namespace {

comm::LaneOptions lane_options(const RowsSetup& setup, bool counts_go_alone) {
  comm::LaneOptions options;
  options.transport = setup.transport;
  options.row_bytes = setup.row_bytes;
  options.counts_per_member = std::max(1, setup.placement->most_experts_on_a_rank());
  const bool go_along = setup.device == nullptr && !counts_go_alone;
  options.first_message_bytes = go_along ? first_message_bytes : 0;
  options.device = setup.device;
  return options;
}

}  // namespace

void count_sent(Traffic& traffic, Share share, const comm::RowMove& move,
                const std::vector<int>& ranks, std::size_t row_bytes) {
  std::int64_t sent = 0;
  HopTraffic& hop = traffic.hops[static_cast<std::size_t>(share)];
  for (std::size_t m = 0; m < ranks.size(); ++m) {
    const auto bytes =
        static_cast<std::int64_t>(move.send_counts[m]) * static_cast<std::int64_t>(row_bytes);
    traffic.bytes_to[static_cast<std::size_t>(ranks[m])] += bytes;
    hop.rows += move.send_counts[m];
    hop.bytes += bytes;
    sent += bytes;
  }
  traffic.bytes_sent_at_once = std::max(traffic.bytes_sent_at_once, sent);
}

ExpertExchange::ExpertExchange(const RowsSetup& setup, compute::Chunk& chunk, Share share,
                               bool counts_go_alone)
    : setup_(setup),
      chunk_(chunk),
      share_(share),
      world_ranks_(setup.groups->world_ranks(share)),
      lane_(setup.groups->of(share), lane_options(setup, counts_go_alone)),
      move_(static_cast<int>(world_ranks_.size())) {
  std::size_t most_blocks = 0;
  for (const LayerPlacement& kind : setup.placement->kinds) {
    rows_.push_back(rows_for(kind));
    most_blocks = std::max(most_blocks, rows_.back().most_blocks());
  }
  expert_blocks_.reserve(most_blocks);
  blocks_.reserve(most_blocks);
}

ExpertRows ExpertExchange::rows_for(const LayerPlacement& placement) const {
  return {places_of_members(placement, setup_.groups->members(share_)),
          setup_.groups->of(share_).rank()};
}

ExpertRows& ExpertExchange::rows_of(int layer) {
  return rows_[static_cast<std::size_t>(
      setup_.placement->kind_of_layer[static_cast<std::size_t>(layer)])];
}

void ExpertExchange::tell(int layer, std::span<const std::int32_t> counts) {
  told_ = &rows_of(layer);
  told_->packed(counts);
  told_->plan_sends(move_);
  for (const int peer : lane_.counters().peers().to) {
    const auto numbers = told_->told_to(peer);
    std::copy(numbers.begin(), numbers.end(), lane_.counters().to(peer).begin());
  }
  lane_.counters().start(move_, chunk_.dispatch_send);
}

bool ExpertExchange::told() {
  if (!lane_.counters().done()) return false;
  for (const int peer : lane_.counters().peers().from) {
    told_->heard_from(peer, lane_.counters().from(peer));
  }
  told_->plan_receives(move_);
  const std::int64_t arriving = move_.rows_received();
  if (setup_.device != nullptr && arriving > chunk_.receive_capacity) {
    ++setup_.traffic->receive_growths;
  }
  chunk_.reserve_receive(arriving);
  return true;
}

void ExpertExchange::dispatch() {
  count_sent(*setup_.traffic, share_, move_, world_ranks_, setup_.row_bytes);
  if (!alone()) lane_.start_told(move_, chunk_.dispatch_send, chunk_.dispatch_recv);
}

void ExpertExchange::combine() {
  move_.reverse();
  count_sent(*setup_.traffic, share_, move_, world_ranks_, setup_.row_bytes);
  if (!alone()) lane_.start(move_, chunk_.combine_send, chunk_.combine_recv);
}

std::span<const compute::RowBlock> ExpertExchange::blocks(int layer) {
  rows_of(layer).blocks(expert_blocks_);
  blocks_.clear();
  for (const ExpertBlock& block : expert_blocks_) {
    blocks_.push_back(row_block(block, chunk_, setup_.row_bytes));
    setup_.traffic->rows_computed += block.num_rows;
  }
  return blocks_;
}

}  // namespace atl
