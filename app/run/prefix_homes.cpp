#include "app/run/prefix_homes.hpp"

#include <algorithm>

namespace atl {

void PrefixHomes::held_of(std::span<const PrefixKey> keys, std::span<HeldPrefix> held) const {
  std::ranges::fill(held, HeldPrefix());
  for (std::size_t page = 0; page < keys.size(); ++page) {
    const auto found = holders_.find(keys[page]);
    if (found == holders_.end()) return;
    for (const Holders& holders : found->second) {
      HeldPrefix& of_rank = held[static_cast<std::size_t>(holders.rank)];
      of_rank.pages = static_cast<std::int64_t>(page) + 1;  // who has a page has those before it
      of_rank.tokens = of_rank.pages * page_tokens_;
    }
  }
}

void PrefixHomes::given(std::int32_t request, int rank, std::vector<PrefixKey> keys) {
  for (const PrefixKey& key : keys) {
    std::vector<Holders>& of_page = holders_[key];
    const auto found = std::ranges::find(of_page, rank, &Holders::rank);
    if (found == of_page.end()) {
      of_page.push_back({rank, 1});
    } else {
      ++found->count;
    }
  }
  given_[request] = {rank, std::move(keys)};
}

void PrefixHomes::finished(std::int32_t request) {
  const auto found = given_.find(request);
  if (found == given_.end()) return;
  for (const PrefixKey& key : found->second.keys) {
    const auto page = holders_.find(key);
    std::vector<Holders>& of_page = page->second;
    const auto here = std::ranges::find(of_page, found->second.rank, &Holders::rank);
    if (--here->count > 0) continue;
    of_page.erase(here);
    if (of_page.empty()) holders_.erase(page);
  }
  given_.erase(found);
}

}  // namespace atl
