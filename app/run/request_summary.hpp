#pragma once

#include <cstdint>
#include <vector>

namespace atl {

/// When the requests of all ranks got their tokens; filled on rank 0.
struct RequestSummary {
  std::int64_t requests = 0;
  std::int64_t refused = 0;
  std::int64_t failed = 0;            ///< their numbers were not finite
  std::int64_t resumed = 0;           ///< finished by an earlier run
  std::vector<double> first_token_s;  ///< of each finished request, since the first pass
  std::vector<double> per_token_s;    ///< mean time per token after the first
  double perplexity = 0;              ///< scoring; 0 otherwise
  std::int64_t scored_tokens = 0;
};

}  // namespace atl
