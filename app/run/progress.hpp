#pragma once
// What a person watching sees: a bar on a terminal, plain lines in a batch log.

#include <cstdint>
#include <string>

namespace atl {

class Progress {
 public:
  enum class Style : std::uint8_t { none, bar, lines };

  /// `style` is auto, bar, lines or none; auto looks at stderr (and at the launcher's terminal).
  /// `total` counts all tokens of the job, of prompts and still to generate.
  Progress(const std::string& style, std::int64_t total);

  /// `done` of the total tokens are behind us after `seconds`. Prints at most as often as useful.
  void update(std::int64_t done, double seconds);
  /// Ends the bar's line.
  void finish();

 private:
  Style style_;
  std::int64_t total_;
  double last_print_ = -1e9;
  bool printed_ = false;
};

}  // namespace atl
