#pragma once
// What every backend checks and converts before it takes a model: options, shapes, element types.

#include <cstdint>

#include "compute/aligned_buffer.hpp"
#include "compute/backend.hpp"

namespace atl::compute {

struct Extent {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// Rows and columns the model gives a weight; vectors are one row.
Extent extent_of(Weight weight, const ModelShape& shape, bool expert);
const char* name_of(Weight weight);

/// Throws Error unless a backend that takes heads up to `largest_head_dim` can be set up so.
void check_options(const BackendOptions& options, int largest_head_dim);

/// Throws Error unless `tensor` is what the model has there; returns its extent.
Extent check_weight(const BackendOptions& options, Weight weight, int layer, int local_expert,
                    const HostTensor& tensor);

/// `tensor` as elements of type `to`; `buffer` holds them if they had to be converted.
const void* converted(const HostTensor& tensor, DType to, AlignedBuffer& buffer);

}  // namespace atl::compute
