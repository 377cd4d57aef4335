#pragma once
// The requests of a run, on rank 0: of each a few numbers that stay, and the request itself as long
// as it is needed.

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "io/requests.hpp"

namespace atl {

/// What stays of a request, until the results are written.
struct RequestEntry {
  std::uint64_t offset : 48 = 0;       ///< the byte of the input at which its line begins
  std::uint64_t check : 16 = 0;        ///< of what it says, to know it again
  std::uint64_t line : 40 = 0;         ///< of the input, from 1
  std::uint64_t usable : 1 = 0;        ///< without an error
  std::uint64_t later_part : 1 = 0;    ///< a part of its line, and not the first
  std::uint64_t continuation : 1 = 0;  ///< of a prompt
  std::uint64_t scores_prompt : 1 = 0;
  std::uint64_t done : 1 = 0;  ///< it will not be asked for any more
  std::int32_t prompt_tokens = 0;
  std::int32_t max_tokens = -1;  ///< as it says; -1: it does not
};
/// Of this request, whose identity_text() is given.
RequestEntry entry_of(const io::Request& request, std::string_view identity);
/// Whether it may be the one that has this entry; where not, the input has changed.
bool is_of(const RequestEntry& entry, const io::Request& request);

/// A request that cannot be served, and its line of results.
struct Refused {
  std::int64_t line = 0;  ///< of the input
  int part = 0;
  std::string result;
};
Refused refused_of(const io::Request& request);

/// What serves requests needs of those that have them: their number, which may grow, and each of
/// them for a while, about in their order.
class RequestList {
 public:
  virtual ~RequestList() = default;

  std::size_t size() const { return entries_.size(); }
  const RequestEntry& operator[](std::size_t request) const { return entries_[request]; }

  /// These will be asked for soon, in this order.
  virtual void expect(const std::vector<std::int32_t>& requests) = 0;
  /// A usable request, to look at until it is given. Throws Error where it can be had no more.
  virtual const io::Request& whole(std::size_t request) = 0;
  /// The same to have: it is not asked for again.
  virtual io::Request give(std::size_t request) = 0;
  /// It will not be asked for.
  virtual void forget(std::size_t request) = 0;
  /// A usable request is not to be served, for this reason.
  void refuse(std::size_t request, const std::string& error);
  /// Those that cannot be served, since the last call.
  std::vector<Refused> take_refused();

 protected:
  std::deque<RequestEntry> entries_;  // grows without being copied
  std::vector<Refused> refused_;
};

/// Requests that all are in memory.
class ListedRequests : public RequestList {
 public:
  explicit ListedRequests(std::vector<io::Request> requests);

  void expect(const std::vector<std::int32_t>& /*requests*/) override {}
  const io::Request& whole(std::size_t request) override { return requests_[request]; }
  io::Request give(std::size_t request) override;
  void forget(std::size_t request) override { requests_[request] = {}; }

 private:
  std::vector<io::Request> requests_;
};

}  // namespace atl
