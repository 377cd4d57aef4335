// Compiled with the flags of its instruction set (see CMakeLists.txt).
#include "tests/compute/simd_of_loops.hpp"
// clang-format off: the vectors come first
#include "compute/cpu/kernels/table.hpp"
#include "tests/compute/kernel_tables.hpp"
// clang-format on

namespace atl::testing {

const compute::Kernels& kernels_of_loops(DType dtype) {
  return compute::table_of(dtype, "loops");
}

}  // namespace atl::testing
