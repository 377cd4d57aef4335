// What compute/cuda/kernels/wgmma.cuh makes of Hopper's tensor cores where device code runs on the
// host. Products run late, or early, as the seed has it: between their issue and the wait for them
// a GPU may run them at any time, so that code that reads results too early, or overwrites what a
// product still reads, meets an order in which that shows. Ends the process with a message where
// the rules of the instructions are broken.
#pragma once

#include "cuda_runtime.h"

namespace emulated {

/// Where the block's shared memory lies for those who address it by 18 bits.
unsigned shared_address(const void* pointer);

/// One product's operands, as each thread of a warpgroup brings them. Descriptors as PTX has them.
struct WarpgroupProduct {
  float* d = nullptr;              ///< [n / 2], this thread's part
  int columns = 0;                 ///< N
  const std::uint32_t* a = nullptr;  ///< [4] in registers; null: a_matrix
  std::uint64_t a_matrix = 0;
  std::uint64_t b_matrix = 0;
  bool b_by_depth = false;  ///< "MN-major"
  bool bfloat16 = false;
  bool add = false;
};

void wgmma_begin(const Where& where = Where::current());
void wgmma_issue(const WarpgroupProduct& product, const Where& where = Where::current());
void wgmma_commit(const Where& where = Where::current());
void wgmma_wait(int pending, const Where& where = Where::current());

/// This thread wrote to shared memory, and products must not read it before its fence.
void note_shared_write(const void* to, int bytes);
void fence_async_proxy();

template <class T>
void wgmma(float* d, int registers, const std::uint32_t* a, std::uint64_t a_matrix,
           std::uint64_t b_matrix, bool b_by_depth, bool add,
           const Where& where = Where::current()) {
  wgmma_issue({d, registers * 2, a, a_matrix, b_matrix, b_by_depth,
               std::is_same_v<T, __nv_bfloat16>, add},
              where);
}

}  // namespace emulated
