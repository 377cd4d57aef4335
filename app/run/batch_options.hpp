#pragma once

#include <cstdint>
#include <vector>

#include "app/mode.hpp"
#include "app/plan/chunking.hpp"
#include "compute/types.hpp"

namespace atl::io {
class ModelText;
}

namespace atl {

/// How requests become batches, the same on all ranks.
struct BatchOptions : ChunkLimits {
  Mode mode = Mode::generate;
  int max_tokens = 64;     ///< for requests that name none
  int max_sequences = 64;  ///< at once in one pass
  /// Passes under way at the same time, each with sequences of its own: where layers are in stages,
  /// so that each stage has something to do.
  int num_flights = 1;
  int page_tokens = 64;
  std::int64_t num_pages = 0;                ///< KV pages of one rank
  int speculate = 0;                         ///< tokens proposed for a sequence at once
  bool share_prefixes = false;               ///< see PrefixPages
  std::vector<std::int32_t> stop_token_ids;  ///< of the model
  DType dtype = DType::bfloat16;             ///< of the activations, for messages
  const io::ModelText* text = nullptr;       ///< what tokens are, for texts that end results
};

}  // namespace atl
