#pragma once
// What a layout means for ranks that need not be there: who is with whom, and what fits where.

#include <string>

#include "app/config.hpp"
#include "app/run/memory_fit.hpp"

namespace atl {

/// Groups and memory: of the ranks that hold most, weights, buffers, and the tokens of KV cache
/// that the rest of `memory` takes (where it is known), or what would let them fit.
std::string layout_text(const RunOptions& options, const DividedModel& model,
                        const RankMemory& memory);

/// `atoll layout`: of so many ranks, without MPI. Throws Error where the layout is not possible.
std::string layout_text(const LayoutOptions& options);

}  // namespace atl
