#pragma once
// Sums of rows, and the casts to what MPI counts in.

#include <cstdint>
#include <limits>
#include <numeric>
#include <span>

#include "compute/error.hpp"

namespace atl {

inline std::int64_t sum_of(std::span<const std::int32_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

/// MPI counts rows in `int`.
inline int checked_rows(std::int64_t rows, const char* what) {
  require(rows <= std::numeric_limits<int>::max(),
          "{} {} in one exchange, more than MPI counts; use more --chunks or fewer --step-tokens",
          rows, what);
  return static_cast<int>(rows);
}

}  // namespace atl
