#pragma once
// By which way a pass projects attention's output, where ranks that share attention have all of the
// projection.

#include <cstdint>

#include "compute/weights.hpp"

namespace atl {

/// By rows each rank reads the whole projection for its own rows, by columns its part of it for the
/// rows of all, and more bytes travel. Reading costs nothing beside multiplying once a rank has as
/// many rows as `balance_rows` (see PassFacts): by rows then. `rows`: tokens of the rank with most
/// in this pass, which is cut into `chunks`. Alike on all ranks, which agree on these numbers.
inline compute::OutputCut output_of_pass(std::int64_t rows, int chunks, double balance_rows) {
  return static_cast<double>(rows) >= balance_rows * chunks ? compute::OutputCut::rows
                                                            : compute::OutputCut::columns;
}

}  // namespace atl
