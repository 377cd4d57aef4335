#pragma once
// What a person watching sees: a bar on a terminal, plain lines in a batch log.

#include <cstdint>
#include <optional>

#include "app/progress_style.hpp"

namespace atl {

class Progress {
 public:
  /// No `style`: by what stderr, or the launcher's, leads to.
  /// `total` counts all tokens of the job, of prompts and still to generate.
  Progress(std::optional<ProgressStyle> style, std::int64_t total);

  /// `done` of the total tokens are behind us after `seconds`. Prints at most as often as useful.
  void update(std::int64_t done, double seconds);
  /// Ends the bar's line.
  void finish();

 private:
  ProgressStyle style_;
  std::int64_t total_;
  double last_print_ = -1e9;
  bool printed_ = false;
};

}  // namespace atl
