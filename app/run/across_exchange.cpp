#include "app/run/across_exchange.hpp"

#include <algorithm>

#include "app/run/expert_exchange.hpp"

namespace atl {

namespace {

AcrossRows rows_for(const LayerPlacement& placement, const RowsSetup& setup) {
  return {placement, setup.groups->layout(), setup.groups->of(Share::exchange).rank()};
}

std::vector<AcrossRows> rows_of_kinds(const RowsSetup& setup) {
  std::vector<AcrossRows> rows;
  for (const LayerPlacement& kind : setup.placement->kinds) rows.push_back(rows_for(kind, setup));
  return rows;
}

comm::LaneOptions lane_options(const RowsSetup& setup, std::size_t row_bytes) {
  comm::LaneOptions options;
  options.transport = setup.transport;
  options.row_bytes = row_bytes;
  options.device = setup.device;
  options.peers = comm::Peers{};
  return options;
}

comm::LaneOptions told_lane_options(const RowsSetup& setup, std::size_t row_bytes,
                                    const AcrossRows& rows) {
  comm::LaneOptions options = lane_options(setup, row_bytes);
  options.peers = comm::Peers{rows.sends_to(), rows.receives_from()};
  options.counts_per_member = 2 + setup.placement->most_places_on_a_node();
  options.first_message_bytes = setup.device == nullptr ? first_message_bytes : 0;
  return options;
}

}  // namespace

AcrossExchange::AcrossExchange(const RowsSetup& setup, compute::Chunk& chunk)
    : setup_(setup),
      chunk_(chunk),
      world_ranks_(setup.groups->world_ranks(Share::rail)),
      rows_(rows_of_kinds(setup)),
      row_bytes_(setup.across_row_bytes),
      there_(setup.groups->of(Share::rail), told_lane_options(setup, row_bytes_, rows_.front())),
      back_(setup.groups->of(Share::rail), lane_options(setup, setup.row_bytes)),
      move_(static_cast<int>(world_ranks_.size())) {}

AcrossRows& AcrossExchange::rows_of(int layer) {
  return rows_[static_cast<std::size_t>(
      setup_.placement->kind_of_layer[static_cast<std::size_t>(layer)])];
}

void AcrossExchange::placed(int layer) {
  rows_of(layer) = rows_for(setup_.placement->of(layer), setup_);
}

void AcrossExchange::tell(int layer) {
  told_ = &rows_of(layer);
  told_->packed(chunk_);
  told_->plan_sends(move_);
  for (int node = 0; node < setup_.groups->layout().num_nodes(); ++node) {
    if (node == setup_.groups->layout().node_of(setup_.groups->of(Share::exchange).rank()))
      continue;
    told_->tell(node, there_.counters().to(told_->member_of_node(node)));
  }
  there_.counters().start(move_, chunk_.across_send);
}

bool AcrossExchange::told() {
  if (!there_.counters().done()) return false;
  for (const int peer : there_.counters().peers().from) {
    told_->heard_from(peer, there_.counters().from(peer));
  }
  told_->plan_receives(move_);
  chunk_.reserve_across(told_->node_rows(), told_->forwarded());
  return true;
}

void AcrossExchange::dispatch() {
  count_sent(*setup_.traffic, Share::rail, move_, world_ranks_, row_bytes_);
  there_.start_told(move_, chunk_.across_send, chunk_.across_recv);
}

void AcrossExchange::combine() {
  told_->plan_return(move_);
  count_sent(*setup_.traffic, Share::rail, move_, world_ranks_, setup_.row_bytes);
  back_.start(move_, chunk_.across_done, chunk_.across_return);
}

bool AcrossExchange::moved(StepKind kind) const {
  return lane(kind).done();
}

}  // namespace atl
