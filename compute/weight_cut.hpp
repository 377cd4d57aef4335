#pragma once
// What a rank has of a weight where several ranks share it.

#include <cstdint>
#include <vector>

#include "compute/aligned_buffer.hpp"
#include "compute/weights.hpp"

namespace atl::compute {

/// Some rows of a weight, and of each the same columns.
struct WeightCut {
  struct Range {
    std::int64_t first = 0;
    std::int64_t count = 0;
  };
  std::vector<Range> rows;  ///< in the order in which the rank keeps them
  Range cols;

  std::int64_t num_rows() const;
};

/// What `part` has of a weight that it has at all: everything, unless the table says along what the
/// weight is cut, and the part that it is.
WeightCut cut_of(const ModelShape& shape, const Part& part, const WeightInfo& info);

/// The weight's row of the table with the rows and columns that the part has of it. `datasets` stay
/// those of the whole weight.
WeightInfo own_weight(const ModelShape& shape, const Part& part, const WeightInfo& info);

/// What the part has of the whole `tensor`; `buffer` holds it where that is not all. Throws Error
/// where the part's columns begin inside a group of codes.
HostTensor own_tensor(const ModelShape& shape, const Part& part, const WeightInfo& info,
                      const HostTensor& tensor, AlignedBuffer& buffer);

}  // namespace atl::compute
