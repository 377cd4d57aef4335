#pragma once
// Which first pages sequences under way have in common.

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace atl {

/// Sequences that have a page in common have all pages before it in common, too.
class SharedRuns {
 public:
  explicit SharedRuns(std::int32_t page_tokens) : page_tokens_(page_tokens) {}

  /// A sequence with these pages, of which so many positions are filled.
  void count(std::span<const std::int32_t> pages, std::int32_t filled) {
    for (const std::int32_t page : whole(pages, filled)) ++holders_[page];
  }

  /// Whole pages that the same sequences have in common.
  struct Run {
    std::int32_t last_page = 0;
    std::int32_t positions = 0;
  };
  /// Those of a sequence that was counted, each with fewer holders than the one before; all were.
  std::vector<Run> of(std::span<const std::int32_t> pages, std::int32_t filled) const {
    std::vector<Run> runs;
    std::int32_t holders = 0;
    for (const std::int32_t page : whole(pages, filled)) {
      const std::int32_t now = holders_.at(page);
      if (now < 2) break;
      if (now != holders) runs.emplace_back();
      holders = now;
      runs.back().last_page = page;
      runs.back().positions += page_tokens_;
    }
    return runs;
  }

 private:
  std::span<const std::int32_t> whole(std::span<const std::int32_t> pages,
                                      std::int32_t filled) const {
    return pages.first(static_cast<std::size_t>(filled / page_tokens_));
  }

  std::int32_t page_tokens_;
  std::unordered_map<std::int32_t, std::int32_t> holders_;  // by page
};

}  // namespace atl
