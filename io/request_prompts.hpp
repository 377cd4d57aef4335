#pragma once
// The prompts of requests: text becomes tokens, and what does not fit the model is refused.

#include <cstddef>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "io/model_text.hpp"
#include "io/requests.hpp"
#include "io/tokenizer/encoder.hpp"

namespace atl::io {

/// Encodes the prompts that requests have as text.
class PromptEncoder {
 public:
  /// Both must outlive it.
  PromptEncoder(const RequestLimits& limits, const ModelText& text)
      : limits_(limits), text_(text) {}

  /// On as many threads as this process may use cores, where there is enough text for them and with
  /// `all_cores`; else on the caller's. Those that cannot be encoded, or do not fit, get an error.
  void encode(std::vector<Request>& requests, bool all_cores);
  /// Gives back what it remembers of earlier texts, some megabytes for each thread.
  void forget() { memories_.clear(); }

 private:
  void encode_one(Request& request, EncodeMemory& memory) const;
  std::vector<std::int32_t> encode_prompt(const Request& request, const std::string& text,
                                          EncodeMemory& memory) const;
  void encode_continuation(const Request& request, TextOrTokens& continuation,
                           EncodeMemory& memory) const;
  void require_known(const std::vector<std::int32_t>& tokens, const char* what) const;
  void encode_all(const std::vector<Request*>& waiting, std::size_t num_threads);

  const RequestLimits& limits_;
  const ModelText& text_;
  std::deque<EncodeMemory> memories_;  // a thread's each
};

/// Each request that asks for several samples, of several prompts, or for continuations, as one for
/// each of them. A continuation that does not fit the model refuses its line.
std::vector<Request> in_parts(std::vector<Request> requests, const RequestLimits& limits);

/// Throws Error when the prompt, which may be one of several, is empty, or does not fit the model's
/// positions together with what is to be generated.
void check_length(const std::vector<std::int32_t>& prompt, const Request& request,
                  const RequestLimits& limits);

/// What the line calls what is `key` among Atoll's own, for messages about it.
std::string_view said_as(const Request& request, std::string_view key);

}  // namespace atl::io
