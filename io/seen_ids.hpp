#pragma once
// Which ids the lines of a file have had so far, in some 24 bytes each whatever their length.

#include <cstdint>
#include <deque>
#include <string_view>
#include <vector>

namespace atl::io {

/// Ids stand here by 88 bits of their checksum: of a hundred million lines two different ids are
/// taken for one with a probability of 2e-11.
class SeenIds {
 public:
  /// The line that had this id before. 0: none had, and from now on `line` (below 2^40) has it.
  std::int64_t line_of(std::string_view id, std::int64_t line);

 private:
  struct Seen {
    std::uint64_t low = 0;
    std::uint64_t high_and_line = 0;
  };
  std::size_t slot_of(const Seen& seen) const;
  void grow();

  std::deque<Seen> seen_;  // grows without being copied
  std::vector<std::uint32_t> slots_ = std::vector<std::uint32_t>(1024);  // index + 1; 0: free
};

}  // namespace atl::io
