#pragma once
// Cutting text into the pieces that byte-pair encoding then works on, each by itself.

#include <string>
#include <vector>

#include "io/tokenizer/regex.hpp"
#include "io/tokenizer/spec.hpp"

namespace atl::io {

/// A part of a text, in bytes.
struct Piece {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class Cutter {
 public:
  /// Throws Error where a pattern is not valid.
  explicit Cutter(const std::vector<CutStep>& steps);

  /// Cuts `text` (UTF-8, which steps may change). `is_start`: nothing stands before it in the
  /// request. Throws Error when a search takes too much.
  void cut(std::string& text, bool is_start, std::vector<Piece>& pieces, RegexMemory& memory) const;

 private:
  struct Step {
    CutStep step;
    Regex regex;
  };
  std::vector<Step> steps_;
};

}  // namespace atl::io
