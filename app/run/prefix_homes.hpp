#pragma once
// On the rank that gives requests out: which beginnings of prompts lie on which owners, as long as
// a request that has them is under way there. So it knows what a request takes of an owner's pages
// and time, without a word from that one.

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "app/plan/admission.hpp"
#include "app/run/prefix_key.hpp"

namespace atl {

class PrefixHomes {
 public:
  explicit PrefixHomes(int page_tokens) : page_tokens_(page_tokens) {}

  /// What each rank has of a prompt with these page_keys(), into `held` [ranks].
  void held_of(std::span<const PrefixKey> keys, std::span<HeldPrefix> held) const;
  /// A rank takes a request, and from then on has the whole pages of its prompt.
  void given(std::int32_t request, int rank, std::vector<PrefixKey> keys);
  /// The request has ended. Of one that was never given nothing is known, and nothing happens.
  void finished(std::int32_t request);

 private:
  struct Holders {
    int rank = 0;
    std::int32_t count = 0;
  };
  struct Given {
    int rank = 0;
    std::vector<PrefixKey> keys;
  };

  int page_tokens_;
  std::unordered_map<PrefixKey, std::vector<Holders>, PrefixKeyHash> holders_;
  std::unordered_map<std::int32_t, Given> given_;
};

}  // namespace atl
