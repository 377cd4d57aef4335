#include "app/plan/expert_rows.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "compute/error.hpp"

namespace atl {

namespace {

std::int64_t sum_of(std::span<const std::int32_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// MPI counts rows in `int`.
int checked(std::int64_t rows, const char* what) {
  require(rows <= std::numeric_limits<int>::max(),
          "{} {} in one exchange, more than MPI counts; use more --chunks or fewer --step-tokens",
          rows, what);
  return static_cast<int>(rows);
}

}  // namespace

compute::RowBlock row_block(const ExpertBlock& block, const compute::Chunk& chunk,
                            std::size_t row_bytes) {
  const std::size_t offset = static_cast<std::size_t>(block.first_row) * row_bytes;
  const auto at = [offset](void* base) { return static_cast<std::byte*>(base) + offset; };
  return {block.local_expert, block.num_rows,
          at(block.own ? chunk.dispatch_send : chunk.dispatch_recv),
          at(block.own ? chunk.combine_recv : chunk.combine_send)};
}

ExpertRows::ExpertRows(const Placement& placement, int own_rank)
    : placement_(placement),
      own_(own_rank),
      packed_(placement.rank_of.size()),
      heard_(static_cast<std::size_t>(placement.num_ranks()) * num_local()) {}

std::size_t ExpertRows::num_local() const {
  return placement_.experts_of[static_cast<std::size_t>(own_)].size();
}

void ExpertRows::packed(std::span<const std::int32_t> counts) {
  std::copy(counts.begin(), counts.end(), packed_.begin());
}

std::span<const std::int32_t> ExpertRows::told_to(int rank) const {
  const auto r = static_cast<std::size_t>(rank);
  const auto first = static_cast<std::size_t>(placement_.first_place_of[r]);
  return std::span(packed_).subspan(first, placement_.experts_of[r].size());
}

void ExpertRows::heard_from(int rank, std::span<const std::int32_t> counts) {
  const auto first = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(rank) * num_local());
  std::copy_n(counts.begin(), num_local(), heard_.begin() + first);
}

std::span<const std::int32_t> ExpertRows::counts_of(int rank) const {
  if (rank == own_) return told_to(own_);
  return std::span(heard_).subspan(static_cast<std::size_t>(rank) * num_local(), num_local());
}

void ExpertRows::plan_sends(comm::RowMove& move) const {
  std::int64_t before = 0;
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    const std::int64_t rows = sum_of(told_to(rank));
    move.send_offsets[r] = checked(before, "rows sent");
    move.send_counts[r] = rank == own_ ? 0 : checked(rows, "rows sent");
    before += rows;  // the own rows keep their place among the packed ones
  }
}

void ExpertRows::plan_receives(comm::RowMove& move) const {
  std::int64_t before = 0;
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    const std::int64_t rows = rank == own_ ? 0 : sum_of(counts_of(rank));
    move.recv_offsets[r] = checked(before, "rows received");
    move.recv_counts[r] = checked(rows, "rows received");
    before += rows;
  }
}

void ExpertRows::blocks(std::vector<ExpertBlock>& blocks) const {
  blocks.clear();
  for (std::size_t expert = 0; expert < num_local(); ++expert) {
    std::int64_t arrived_before = 0;  // of the ranks before
    for (int rank = 0; rank < num_ranks(); ++rank) {
      const bool own = rank == own_;
      const auto counts = counts_of(rank);
      if (counts[expert] > 0) {
        const std::int64_t group =
            own ? sum_of(std::span(packed_).first(static_cast<std::size_t>(
                      placement_.first_place_of[static_cast<std::size_t>(own_)])))
                : arrived_before;
        blocks.push_back({static_cast<std::int32_t>(expert), counts[expert], own,
                          group + sum_of(counts.first(expert))});
      }
      if (!own) arrived_before += sum_of(counts);
    }
  }
}

}  // namespace atl
