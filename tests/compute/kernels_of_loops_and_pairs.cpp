// Compiled with the flags of its instruction set (see CMakeLists.txt).
#define ATL_LOOPS_HAVE_PAIRS
#include "tests/compute/simd_of_loops.hpp"
// clang-format off: the vectors come first
#include "compute/cpu/kernels/table.hpp"
#include "tests/compute/kernel_tables.hpp"
// clang-format on

namespace atl::testing {

const compute::Kernels& kernels_of_loops_and_pairs(DType dtype) {
  return compute::table_of(dtype, "loops_and_pairs");
}

}  // namespace atl::testing
