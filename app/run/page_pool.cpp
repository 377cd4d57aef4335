#include "app/run/page_pool.hpp"

#include "compute/error.hpp"

namespace atl {

PagePool::PagePool(std::int64_t num_pages) : holders_(static_cast<std::size_t>(num_pages)) {
  free_.reserve(holders_.size());
  for (std::int64_t page = num_pages; page-- > 0;) free_.push_back(static_cast<std::int32_t>(page));
}

int PagePool::holders(std::int32_t page) const {
  require(page >= 0 && static_cast<std::size_t>(page) < holders_.size(),
          "internal: there is no KV page {}", page);
  return holders_[static_cast<std::size_t>(page)];
}

std::int32_t& PagePool::holders_of(std::int32_t page) {
  require(holders(page) > 0, "internal: nothing holds KV page {}", page);
  return holders_[static_cast<std::size_t>(page)];
}

std::int32_t PagePool::take() {
  require(!free_.empty(), "internal: all {} KV pages are in use", holders_.size());
  const std::int32_t page = free_.back();
  free_.pop_back();
  holders_[static_cast<std::size_t>(page)] = 1;
  return page;
}

void PagePool::share(std::int32_t page) {
  ++holders_of(page);
}

void PagePool::give_back(std::int32_t page) {
  if (--holders_of(page) == 0) free_.push_back(page);
}

}  // namespace atl
