#pragma once

#include <cstdint>

namespace atl {

/// How often something is done: after so many passes, or so many seconds; the other is 0.
struct Interval {
  std::int64_t passes = 0;
  double seconds = 0;
};

}  // namespace atl
