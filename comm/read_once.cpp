#include "comm/read_once.hpp"

#include <algorithm>
#include <vector>

namespace atl::comm {

namespace {

constexpr std::size_t smallest_slice = std::size_t{128} << 10;  // less is no work for a disk
constexpr std::size_t slice_of_full_piece = std::size_t{1} << 20;
constexpr std::size_t smallest_piece = std::size_t{64} << 20;
constexpr std::size_t largest_piece = std::size_t{512} << 20;
constexpr std::size_t boundary = std::size_t{4} << 10;  // a page; no element lies across one

std::size_t fewest_ranks(const Topology& topology) {
  int fewest = topology.num_ranks();
  for (int node = 0; node < topology.num_nodes(); ++node) {
    fewest = std::min(fewest, topology.ranks_on(node));
  }
  return static_cast<std::size_t>(fewest);
}

/// Where slice `slice` of `count` begins.
std::size_t begin_of(std::size_t slice, std::size_t count, std::size_t bytes) {
  return slice == count ? bytes : bytes / count * slice / boundary * boundary;
}

}  // namespace

ReadOnce::ReadOnce(const Communicator& world, const Topology& topology)
    : num_nodes_(static_cast<std::size_t>(topology.num_nodes())),
      num_rails_(fewest_ranks(topology)),
      node_(static_cast<std::size_t>(topology.node_of[static_cast<std::size_t>(world.rank())])),
      local_(
          static_cast<std::size_t>(topology.local_rank_of[static_cast<std::size_t>(world.rank())])),
      rail_(world.split(local_ < num_rails_ ? static_cast<int>(local_)
                                            : static_cast<int>(num_rails_) + world.rank(),
                        static_cast<int>(node_))),
      inside_(world.split(static_cast<int>(node_), static_cast<int>(local_))) {}

std::size_t ReadOnce::piece_bytes() const {
  return std::clamp(num_slices() * slice_of_full_piece, smallest_piece, largest_piece);
}

std::optional<std::size_t> ReadOnce::only_slice(std::size_t bytes, std::uint64_t number) const {
  if (bytes >= num_slices() * smallest_slice) return std::nullopt;
  // One rail after the other on a node, then the next node, would leave nodes idle for long.
  const auto turn = static_cast<std::size_t>(number % num_slices());
  return slice(turn / num_nodes_, turn % num_nodes_);
}

ReadOnce::Slice ReadOnce::slice_of(std::size_t bytes, std::uint64_t number) const {
  if (local_ >= num_rails_) return {};
  const std::size_t mine = slice(local_, node_);
  if (const auto only = only_slice(bytes, number)) return {0, *only == mine ? bytes : 0};
  const std::size_t first = begin_of(mine, num_slices(), bytes);
  return {first, begin_of(mine + 1, num_slices(), bytes) - first};
}

void ReadOnce::share(std::span<std::byte> piece, std::uint64_t number) const {
  if (const auto only = only_slice(piece.size(), number)) {
    const std::size_t rail = *only / num_nodes_;
    if (num_nodes_ > 1 && local_ == rail) {
      rail_.broadcast(piece, static_cast<int>(*only % num_nodes_));
    }
    if (inside_.size() > 1) inside_.broadcast(piece, static_cast<int>(rail));
    return;
  }
  const auto begin = [&](std::size_t slice) { return begin_of(slice, num_slices(), piece.size()); };
  std::vector<std::size_t> bounds;
  if (num_nodes_ > 1 && local_ < num_rails_) {
    for (std::size_t node = 0; node <= num_nodes_; ++node) {
      bounds.push_back(begin(slice(local_, node)));
    }
    rail_.share(piece, bounds);
  }
  if (inside_.size() == 1) return;
  bounds.clear();
  for (std::size_t local = 0; local <= static_cast<std::size_t>(inside_.size()); ++local) {
    bounds.push_back(begin(slice(std::min(local, num_rails_), 0)));
  }
  inside_.share(piece, bounds);
}

}  // namespace atl::comm
