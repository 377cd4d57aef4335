#pragma once

#include <cstdint>
#include <vector>

namespace atl {

/// The KV pages of a rank, and how many sequences hold each: a page is free again when its last
/// holder gives it back.
class PagePool {
 public:
  /// Pages 0 to `num_pages` - 1, all free. Nothing is allocated later.
  explicit PagePool(std::int64_t num_pages);

  std::int64_t num_free() const { return static_cast<std::int64_t>(free_.size()); }
  /// How many hold a page; 0: it is free.
  int holders(std::int32_t page) const;

  /// A free page, which has one holder now. Throws Error when there is none.
  std::int32_t take();
  /// One holder more of a page that has one. Throws Error for a free page.
  void share(std::int32_t page);
  /// One holder less. Throws Error for a free page.
  void give_back(std::int32_t page);

 private:
  std::int32_t& holders_of(std::int32_t page);  // of a page in use

  std::vector<std::int32_t> holders_;  // [pages]
  std::vector<std::int32_t> free_;     // the last one is taken first
};

}  // namespace atl
