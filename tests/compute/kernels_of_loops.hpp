#pragma once
// The kernels over vectors of 16 in plain loops (see simd_of_loops.hpp), as AVX-512 without and
// with BF16 instantiates them.

#include "compute/cpu/kernels.hpp"

namespace atl::testing {

const compute::Kernels& kernels_of_loops(DType dtype);
const compute::Kernels& kernels_of_loops_and_pairs(DType dtype);

}  // namespace atl::testing
