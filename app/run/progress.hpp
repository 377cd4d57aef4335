#pragma once
// What a person watching sees: a bar on a terminal, plain lines in a batch log.

#include <cstdint>
#include <optional>
#include <string>

#include "app/progress_style.hpp"

namespace atl {

class Progress {
 public:
  /// No `style`: by what stderr, or the launcher's, leads to.
  explicit Progress(std::optional<ProgressStyle> style);

  /// Whether an update `seconds` after the begin would be of use.
  bool due(double seconds) const;
  /// Of the job's `total` tokens, of prompts and to generate, at most `left` are still to come
  /// after `seconds`. `remarks` stand behind.
  void update(std::int64_t total, std::int64_t left, double seconds, const std::string& remarks);
  /// Ends the bar's line.
  void finish();

 private:
  double period() const;

  ProgressStyle style_;
  double last_print_ = -1e9;
  bool printed_ = false;
};

}  // namespace atl
