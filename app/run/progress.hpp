#pragma once
// What a person watching sees: a bar on a terminal, plain lines in a batch log.

#include <cstdint>
#include <optional>

#include "app/progress_style.hpp"

namespace atl {

class Progress {
 public:
  /// No `style`: by what stderr, or the launcher's, leads to.
  explicit Progress(std::optional<ProgressStyle> style);

  /// Of the job's `total` tokens, of prompts and to generate, at most `left` are still to come
  /// after `seconds`. Prints at most as often as useful.
  void update(std::int64_t total, std::int64_t left, double seconds);
  /// Ends the bar's line.
  void finish();

 private:
  ProgressStyle style_;
  double last_print_ = -1e9;
  bool printed_ = false;
};

}  // namespace atl
