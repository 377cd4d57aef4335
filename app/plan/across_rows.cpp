#include "app/plan/across_rows.hpp"

#include <algorithm>

#include "app/plan/counted_rows.hpp"

namespace atl {

namespace {
/// Rows, and rows on the way back: what a message says before the counts of places.
constexpr std::size_t head = 2;
}  // namespace

AcrossRows::AcrossRows(const LayerPlacement& placement, const Layout& layout, int own_rank)
    : own_node_(layout.node_of(own_rank)), first_place_of_node_(placement.first_place_of_node()) {
  const Grouping& rails = layout.of(Share::rail);
  const std::vector<int>& rail = rails.group_with(own_rank);
  num_members_ = static_cast<int>(rail.size());
  for (int node = 0; node < layout.num_nodes(); ++node) {
    const int receiver = layout.receiver(own_rank, node);
    to_node_.push_back(rails.place_of[static_cast<std::size_t>(receiver)]);
    if (node != own_node_) to_members_.push_back(to_node_.back());
  }
  for (int member = 0; member < num_members_; ++member) {
    const int rank = rail[static_cast<std::size_t>(member)];
    if (layout.node_of(rank) == own_node_) continue;
    if (layout.receiver(rank, own_node_) == own_rank) from_.push_back(member);
  }
  const auto nodes = static_cast<std::size_t>(layout.num_nodes());
  sent_.resize(nodes);
  returned_.resize(nodes);
  place_counts_.resize(placement.replicas().size());
  heard_.resize(rail.size());
  heard_return_.resize(rail.size());
  node_counts_.resize(num_told(own_node_) - head);
}

std::size_t AcrossRows::num_told(int node) const {
  const auto n = static_cast<std::size_t>(node);
  return head + static_cast<std::size_t>(first_place_of_node_[n + 1] - first_place_of_node_[n]);
}

void AcrossRows::packed(const compute::Chunk& chunk) {
  std::copy(chunk.packed_counts.begin(), chunk.packed_counts.end(), place_counts_.begin());
  std::copy(chunk.node_rows.begin(), chunk.node_rows.end(), sent_.begin());
  std::copy(chunk.node_returns.begin(), chunk.node_returns.end(), returned_.begin());
  const auto own_first =
      static_cast<std::ptrdiff_t>(first_place_of_node_[static_cast<std::size_t>(own_node_)]);
  std::copy_n(place_counts_.begin() + own_first, node_counts_.size(), node_counts_.begin());
  std::fill(heard_.begin(), heard_.end(), 0);
  std::fill(heard_return_.begin(), heard_return_.end(), 0);
}

void AcrossRows::tell(int node, std::span<std::int32_t> counters) const {
  const auto n = static_cast<std::size_t>(node);
  counters[0] = sent_[n];
  counters[1] = returned_[n];
  const auto first = static_cast<std::ptrdiff_t>(first_place_of_node_[n]);
  std::copy_n(place_counts_.begin() + first, num_told(node) - head, counters.begin() + head);
}

void AcrossRows::heard_from(int member, std::span<const std::int32_t> counters) {
  const auto m = static_cast<std::size_t>(member);
  heard_[m] = counters[0];
  heard_return_[m] = counters[1];
  for (std::size_t place = 0; place < node_counts_.size(); ++place) {
    node_counts_[place] += counters[head + place];
  }
}

void AcrossRows::plan_sends(comm::RowMove& move) const {
  std::fill(move.send_counts.begin(), move.send_counts.end(), 0);
  std::int64_t before = 0;
  for (std::size_t node = 0; node < sent_.size(); ++node) {
    const auto m = static_cast<std::size_t>(to_node_[node]);
    if (static_cast<int>(node) != own_node_) {
      move.send_offsets[m] = checked_rows(before, "rows sent");
      move.send_counts[m] = sent_[node];
    }
    before += sent_[node];
  }
}

void AcrossRows::plan_receives(comm::RowMove& move) const {
  std::int64_t before = 0;
  for (std::size_t m = 0; m < heard_.size(); ++m) {
    move.recv_offsets[m] = checked_rows(before, "rows received");
    move.recv_counts[m] = heard_[m];
    before += heard_[m];
  }
}

void AcrossRows::plan_return(comm::RowMove& move) const {
  std::int64_t before = 0;
  for (std::size_t m = 0; m < heard_return_.size(); ++m) {
    move.send_offsets[m] = checked_rows(before, "rows sent back");
    move.send_counts[m] = heard_return_[m];
    before += heard_return_[m];
  }
  std::fill(move.recv_counts.begin(), move.recv_counts.end(), 0);
  before = 0;
  for (std::size_t node = 0; node < returned_.size(); ++node) {
    const auto m = static_cast<std::size_t>(to_node_[node]);
    if (static_cast<int>(node) != own_node_) {
      move.recv_offsets[m] = checked_rows(before, "rows that come back");
      move.recv_counts[m] = returned_[node];
    }
    before += returned_[node];
  }
}

std::int64_t AcrossRows::forwarded() const {
  return sum_of(node_counts_);
}

compute::NodeRows AcrossRows::node_rows() const {
  const auto own = static_cast<std::size_t>(own_node_);
  compute::NodeRows rows;
  rows.own_first = sum_of(std::span(sent_).first(own));
  rows.own_rows = sent_[own];
  rows.own_return_first = sum_of(std::span(returned_).first(own));
  rows.arrived = sum_of(heard_);
  rows.arrived_returns = sum_of(heard_return_);
  return rows;
}

}  // namespace atl
