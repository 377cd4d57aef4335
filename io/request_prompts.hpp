#pragma once
// The prompts of requests: text becomes tokens, and what does not fit the model is refused.

#include <vector>

#include "io/requests.hpp"

namespace atl::io {

/// Encodes, on as many threads as this process may use cores, the prompts that requests have as
/// text. Those that cannot be encoded, or do not fit, get an error.
void encode_prompts(std::vector<Request>& requests, const RequestLimits& limits,
                    const ModelText& text);

/// Throws Error when the prompt is empty, or does not fit the model's positions together with what
/// is to be generated.
void check_length(const Request& request, const RequestLimits& limits);

}  // namespace atl::io
