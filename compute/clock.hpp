#pragma once
// The one clock: everything that is timed and compared reads it.

#include <chrono>

namespace atl {

/// Seconds of the steady clock.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace atl
