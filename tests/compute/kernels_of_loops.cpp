// Compiled with the flags of its instruction set (see CMakeLists.txt).
#define ATL_SIMD "tests/compute/simd_of_loops.hpp"
#include "tests/compute/kernels_of_loops.hpp"

#include "compute/cpu/kernels/table.hpp"

namespace atl::testing {

const compute::Kernels& kernels_of_loops(DType dtype) {
  return compute::table_of(dtype, "loops");
}

}  // namespace atl::testing
