#include "app/run/request_list.hpp"

#include <span>
#include <utility>

#include "app/run/identity.hpp"
#include "io/long_checksum.hpp"

namespace atl {

namespace {

std::uint64_t check_of(std::string_view identity) {
  return io::long_checksum_of(std::as_bytes(std::span(identity)), 0).low & 0xffff;
}

}  // namespace

RequestEntry entry_of(const io::Request& request, std::string_view identity) {
  RequestEntry entry;
  entry.offset = static_cast<std::uint64_t>(request.offset) & ((std::uint64_t{1} << 48) - 1);
  entry.check = check_of(identity);
  entry.line = static_cast<std::uint64_t>(request.line) & ((std::uint64_t{1} << 40) - 1);
  entry.usable = request.error.empty() ? 1 : 0;
  entry.later_part = request.part > 0 ? 1 : 0;
  entry.continuation = request.is_continuation() ? 1 : 0;
  entry.scores_prompt = request.scores_prompt() ? 1 : 0;
  entry.prompt_tokens = static_cast<std::int32_t>(request.tokens.size());
  entry.max_tokens = request.max_tokens.value_or(-1);
  return entry;
}

bool is_of(const RequestEntry& entry, const io::Request& request) {
  return request.error.empty() && entry.check == check_of(identity_text(request));
}

Refused refused_of(const io::Request& request) {
  return {request.line, request.part, io::error_line(request)};
}

void RequestList::refuse(std::size_t request, const std::string& error) {
  io::Request refused = give(request);
  refused.error = error;
  refused_.push_back(refused_of(refused));
  entries_[request].usable = 0;
}

std::vector<Refused> RequestList::take_refused() {
  return std::exchange(refused_, {});
}

ListedRequests::ListedRequests(std::vector<io::Request> requests) : requests_(std::move(requests)) {
  for (const io::Request& request : requests_) {
    entries_.push_back(entry_of(request, identity_text(request)));
    if (!request.error.empty()) refused_.push_back(refused_of(request));
  }
}

io::Request ListedRequests::give(std::size_t request) {
  return std::exchange(requests_[request], {});
}

}  // namespace atl
