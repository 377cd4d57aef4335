#include "app/run/request_needs.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace atl {

namespace {

std::int64_t pages_for(std::int64_t tokens, const BatchOptions& options) {
  return (tokens + options.page_tokens - 1) / options.page_tokens;
}

}  // namespace

int new_tokens_of(const io::Request& request, const BatchOptions& options) {
  if (options.mode == Mode::score) return 0;
  return request.max_tokens.value_or(options.max_tokens);
}

int new_tokens_of(const RequestEntry& request, const BatchOptions& options) {
  if (options.mode == Mode::score) return 0;
  return request.max_tokens < 0 ? options.max_tokens : request.max_tokens;
}

std::int64_t pages_needed(const io::Request& request, const BatchOptions& options) {
  return pages_for(std::ssize(request.tokens) + new_tokens_of(request, options), options);
}

std::int64_t pages_needed(const RequestEntry& request, const BatchOptions& options) {
  return pages_for(std::int64_t{request.prompt_tokens} + new_tokens_of(request, options), options);
}

std::string beyond_cache(const RequestEntry& request, const BatchOptions& options,
                         const std::string& sized_by) {
  const std::int64_t pages = pages_needed(request, options);
  if (pages <= options.num_pages) return "";
  return fmt::format(
      "prompt and new tokens need {} tokens of KV cache, but a rank holds {} ({}); "
      "raise --kv-tokens or shorten the request",
      pages * options.page_tokens, options.num_pages * options.page_tokens, sized_by);
}

RequestNeeds needs_of(const RequestList& requests, bool all_read, int max_positions, int num_ranks,
                      const BatchOptions& options) {
  RequestNeeds needs;
  std::vector<std::int64_t> pages;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const RequestEntry& request = requests[i];
    if (request.usable == 0) continue;
    pages.push_back(pages_needed(request, options));
    needs.longest = std::max(needs.longest,
                             std::int64_t{request.prompt_tokens} + new_tokens_of(request, options));
  }
  needs.count = static_cast<std::int64_t>(requests.size());
  needs.pages = pages_wanted(pages, num_ranks);
  if (all_read) return needs;
  needs.count = std::numeric_limits<std::int64_t>::max();
  needs.longest = max_positions;
  needs.pages.largest = (max_positions + options.page_tokens - 1) / options.page_tokens;
  needs.pages.useful = std::max(needs.pages.useful, needs.pages.largest);
  return needs;
}

SequenceRoom room_for(const RequestNeeds& needs, const BatchOptions& options) {
  const std::int64_t pages = std::min(needs.pages.largest, options.num_pages);
  return {options.max_sequences, std::min(needs.longest, pages * options.page_tokens), pages,
          options.speculate};
}

}  // namespace atl
