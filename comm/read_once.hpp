#pragma once
// What all ranks need of a file, read once: some ranks read a slice each, and every byte enters a
// node once on its way to the others.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "comm/communicator.hpp"
#include "comm/topology.hpp"

namespace atl::comm {

/// The readers are the first ranks of every node, as many as the node with the fewest has. Those
/// with the same local index are a rail: slices go along the rails, then around inside the nodes.
class ReadOnce {
 public:
  /// Collective.
  ReadOnce(const Communicator& world, const Topology& topology);

  /// A part of some bytes, from `first` on.
  struct Slice {
    std::size_t first = 0;
    std::size_t bytes = 0;
  };

  /// Bytes are read and shared in pieces of at most so many, so that MPI counts them in ints and no
  /// wait is without end.
  std::size_t piece_bytes() const;
  /// What this rank reads of a piece of `bytes`, which is the `number`-th that it asks for: small
  /// ones have one reader, each another.
  Slice slice_of(std::size_t bytes, std::uint64_t number) const;
  /// Collective: the slices of the `number`-th piece are in `piece` at their readers, afterwards
  /// all of it is there on every rank.
  void share(std::span<std::byte> piece, std::uint64_t number) const;

 private:
  std::size_t num_slices() const { return num_rails_ * num_nodes_; }
  /// Of a piece that has one reader, its slice.
  std::optional<std::size_t> only_slice(std::size_t bytes, std::uint64_t number) const;
  /// Slice of a rank; those of one rail are neighbours.
  std::size_t slice(std::size_t rail, std::size_t node) const { return rail * num_nodes_ + node; }

  std::size_t num_nodes_;
  std::size_t num_rails_;
  std::size_t node_;
  std::size_t local_;
  Communicator rail_;    // this rank alone where it reads nothing
  Communicator inside_;  // the ranks of this node
};

}  // namespace atl::comm
