#pragma once
// Which experts of a layer have replicas, and where, for given loads: as many places as there are,
// as few moves as will do.

#include <cstdint>
#include <span>
#include <vector>

namespace atl {

/// [ranks][local number]: the experts of a layer that each rank has.
using ExpertsOfRanks = std::vector<std::vector<std::int32_t>>;

/// Rows of the busiest rank, where those of an expert divide evenly over its replicas.
/// `rows` [experts].
double busiest_rows(std::span<const std::int64_t> rows, const ExpertsOfRanks& experts_of);

/// What no placement with so many places goes below: the mean of ranks, or the hottest expert's
/// rows over the replicas that it gets.
double least_busiest_rows(std::span<const std::int64_t> rows, const ExpertsOfRanks& experts_of);

/// Other experts on the same ranks, each of which keeps its number of them: replicas are given out
/// one by one to the expert with most rows for each of its replicas, which is best for the busiest
/// replica, and are put on ranks so that none is much busier than it has to be. Experts stay where
/// they are where that costs nothing; those that stay keep their local numbers.
ExpertsOfRanks replicated(std::span<const std::int64_t> rows, const ExpertsOfRanks& now);

/// An expert's way into the place of another.
struct ExpertMove {
  int from = 0;  ///< ranks
  int to = 0;
  std::int32_t expert = 0;
  std::int32_t local = 0;  ///< its number there

  bool operator==(const ExpertMove&) const = default;
};
/// From ranks that have an expert to those that get it; of several that have it to each in turn.
std::vector<ExpertMove> moves_between(const ExpertsOfRanks& now, const ExpertsOfRanks& next);

}  // namespace atl
