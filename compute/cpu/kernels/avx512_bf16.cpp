// Compiled with the flags of its instruction set (see CMakeLists.txt).
#include "compute/cpu/kernels/table.hpp"

namespace atl::compute {

const Kernels& kernels_avx512_bf16(DType dtype) {
  return table_of(dtype, "avx512_bf16");
}

}  // namespace atl::compute
