#include "app/run/request_needs.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace atl {

int new_tokens_of(const io::Request& request, const BatchOptions& options) {
  if (options.mode == Mode::score) return 0;
  return request.max_tokens.value_or(options.max_tokens);
}

std::int64_t pages_needed(const io::Request& request, const BatchOptions& options) {
  const std::int64_t tokens =
      static_cast<std::int64_t>(request.tokens.size()) + new_tokens_of(request, options);
  return (tokens + options.page_tokens - 1) / options.page_tokens;
}

std::vector<WaitingRequest> waiting_of(const std::vector<io::Request>& requests,
                                       const std::vector<KeptProgress>& kept,
                                       const BatchOptions& options) {
  std::vector<WaitingRequest> waiting;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const io::Request& request = requests[i];
    if (!request.error.empty() || kept[i].finished) continue;
    const auto length = static_cast<std::int64_t>(request.tokens.size());
    waiting.push_back({.request = static_cast<std::int32_t>(i),
                       .pages = pages_needed(request, options),
                       .prompt_tokens = std::max<std::int64_t>(0, length - kept[i].cached),
                       .new_tokens = new_tokens_of(request, options) - kept[i].generated,
                       .resumed = kept[i].cached > 0});
  }
  return waiting;
}

void refuse_beyond_cache(std::vector<io::Request>& requests, const std::vector<KeptProgress>& kept,
                         const BatchOptions& options, const std::string& sized_by) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    io::Request& request = requests[i];
    if (!request.error.empty() || kept[i].finished) continue;
    const std::int64_t pages = pages_needed(request, options);
    if (pages <= options.num_pages) continue;
    request.error = fmt::format(
        "prompt and new tokens need {} tokens of KV cache, but a rank holds {} ({}); "
        "raise --kv-tokens or shorten the request",
        pages * options.page_tokens, options.num_pages * options.page_tokens, sized_by);
  }
}

}  // namespace atl
