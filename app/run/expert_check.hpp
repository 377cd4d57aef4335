#pragma once
// Whether the weights of this rank's experts are still what they were: memory that has gone bad
// would change results without a word.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "compute/backend.hpp"

namespace atl {

/// One expert after the other, so that a check takes little: its checksum is held against that of
/// the time before. What changed before an expert's first check is not seen.
class ExpertCheck {
 public:
  /// `num_experts` [layers]: this rank's.
  ExpertCheck(compute::Backend& backend, std::vector<int> num_experts);

  struct Found {
    int layer = 0;
    int local = 0;  ///< expert of this rank
  };
  /// Looks at the next expert. Operations may be under way.
  std::optional<Found> next();
  /// Other weights have come in its place.
  void changed(int layer, int local) { sum(layer, local).reset(); }
  void all_changed();

  double seconds() const { return seconds_; }
  std::int64_t looks() const { return looks_; }

 private:
  std::optional<std::uint64_t>& sum(int layer, int local) {
    return sums_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(local)];
  }
  bool advance();

  compute::Backend& backend_;
  std::vector<std::vector<std::optional<std::uint64_t>>> sums_;  // [layers][experts]
  std::vector<std::byte> bytes_;
  int layer_ = 0, local_ = -1;  // looked at last
  double seconds_ = 0;
  std::int64_t looks_ = 0;
};

}  // namespace atl
