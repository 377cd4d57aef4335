#pragma once
// Texts that end a result, looked for in the bytes that its tokens give.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace atl {

/// A text may begin in one token and end in another: what the last tokens gave is kept as far as a
/// text may have begun in it.
class StopTexts {
 public:
  void begin(const std::vector<std::string>& stops);
  bool any() const { return longest_ > 0; }
  /// The output goes on with these bytes. True where one of the texts ends in them.
  bool add(std::string_view bytes);
  /// After that: where the first of these texts begins, in bytes of the output.
  std::size_t found_at() const { return found_at_; }

 private:
  std::vector<std::string> stops_;
  std::size_t longest_ = 0;
  std::size_t before_tail_ = 0;  // bytes of the output
  std::string tail_;
  std::size_t found_at_ = 0;
};

}  // namespace atl
