// Compiled with the flags of its instruction set (see CMakeLists.txt).
#define ATL_LOOPS_HAVE_PAIRS
#define ATL_SIMD "tests/compute/simd_of_loops.hpp"
#include "compute/cpu/kernels/table.hpp"
#include "tests/compute/kernels_of_loops.hpp"

namespace atl::testing {

const compute::Kernels& kernels_of_loops_and_pairs(DType dtype) {
  return compute::table_of(dtype, "loops_and_pairs");
}

}  // namespace atl::testing
