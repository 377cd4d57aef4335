#pragma once
// The tensor cores of Hopper (compute capability 9.0, compiled for 90a): wgmma. Inline PTX on a
// device; on the emulated one what tests/emulated_cuda/include/wgmma.h makes of it.
//
// A warpgroup (128 threads that are neighbours) multiplies 64 rows of A by B, N columns, 16 deep:
//   D [64, N] (+)= A [64, 16] B [16, N]
// D lies in registers, A in registers or shared memory, B in shared memory. Which element of D and
// of A lies in which register of which thread PTX's manual says; wgmma_check.cu asks each device
// for it once, and for everything else that stands here, before a kernel may rely on it.
//
// Products run beside the threads:
//   begin_products()   after registers of D or A were written, and before the first product
//   multiply(..)       any number, of which none may be looked at yet
//   commit_products()  ends a group of them
//   wait_products<n>() returns when all but the newest n groups are done
//   settle(d)          after that, for each D, so that the compiler reads it no earlier; before the
//                      first product of several groups, for each A in registers, so that it is
//                      written no later
// They read shared memory through a proxy of their own: fence_for_products() by each thread that
// wrote there, then a barrier, and products see what was written.
//
// Shared memory of A and B is made of tiles of 64 elements (128 bytes) by 8 lines, 1024 bytes and
// so aligned, in which the 16-byte pieces of a line change places (tile_offset): every access of
// eight pieces then meets all banks.

#include <cstdint>

#include "compute/cuda/kernels/device.cuh"
#if defined(__CUDACC__)
#include "compute/cuda/kernels/wgmma_operands.cuh"
#else
#include <wgmma.h>
#endif

namespace atl::compute::cuda {

inline constexpr int group_threads = 128;  ///< of a warpgroup
inline constexpr int group_rows = 64;      ///< of its products
inline constexpr int product_depth = 16;   ///< the k of one product
inline constexpr int line_elements = 64;   ///< of a tile: 128 bytes
inline constexpr int line_bytes = 128;
inline constexpr int tile_alignment = 1024;

/// True where this code was compiled for the instructions.
__device__ inline constexpr bool has_wgmma() {
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  return true;
#else
  return false;
#endif
}

/// The block's dynamic shared memory, aligned for tiles. sizeof(T) is a multiple of the alignment.
template <class T>
__device__ inline T* tiles_in_shared() {
  static_assert(alignof(T) == tile_alignment && sizeof(T) % tile_alignment == 0);
#ifdef __CUDACC__
  extern __shared__ __align__(1024) unsigned char atoll_shared_tiles[];
  return reinterpret_cast<T*>(atoll_shared_tiles);
#else
  return static_cast<T*>(emulated::dynamic_shared_memory());
#endif
}

/// Where element `column` of line `line` lies, in elements of 16 bits: columns in strips of 64, a
/// strip being `lines` lines of 128 bytes. Eight columns from a multiple of 8 on are adjacent.
__device__ inline int tile_offset(int line, int column, int lines) {
  const int piece = (column / 8 % 8) ^ (line % 8);
  return (column / line_elements * lines + line) * line_elements + piece * 8 + column % 8;
}

/// Describes a matrix in such tiles from `start` on. Where k runs along the lines ("K-major") eight
/// lines are rows, and `strip_bytes` is not used: a product stays in one strip. Where k runs across
/// the lines ("MN-major") a strip has 64 of the columns, and the next begins `strip_bytes` later.
__device__ inline std::uint64_t describe_tiles(const void* start, unsigned strip_bytes) {
  constexpr std::uint64_t swizzle_128_bytes = std::uint64_t{1} << 62;
  constexpr std::uint64_t eight_lines = std::uint64_t{8 * line_bytes} >> 4 << 32;
#ifdef __CUDACC__
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(start));
#else
  const unsigned address = emulated::shared_address(start);
#endif
  return swizzle_128_bytes | eight_lines | std::uint64_t{strip_bytes >> 4U} << 16U |
         ((address & 0x3ffffU) >> 4U);
}
/// The same `bytes` (a multiple of 16) further on.
__device__ inline std::uint64_t moved(std::uint64_t description, unsigned bytes) {
  return description + (bytes >> 4U);
}

/// How B lies: lines are its columns, along which k runs, or lines are of one k each.
enum class Lines { columns, depth };

#if !defined(__CUDACC__)

__device__ inline void begin_products() {
  emulated::wgmma_begin();
}
__device__ inline void commit_products() {
  emulated::wgmma_commit();
}
template <int Pending>
__device__ inline void wait_products() {
  emulated::wgmma_wait(Pending);
}
template <int n>
__device__ inline void settle(float (&)[n]) {}
template <int n>
__device__ inline void settle(std::uint32_t (&)[n][4]) {}
__device__ inline void fence_for_products() {
  emulated::fence_async_proxy();
}
/// Tells the emulator of a write to shared memory that fence_for_products() has to follow.
__device__ inline void note_shared_write(const void* to, int bytes) {
  emulated::note_shared_write(to, bytes);
}
template <class T, Lines lines, int n>
__device__ inline void multiply(float (&d)[n], const std::uint32_t (&a)[4], std::uint64_t b,
                                bool add) {
  emulated::wgmma<T>(d, n, a, 0, b, lines == Lines::depth, add);
}
template <class T, Lines lines, int n>
__device__ inline void multiply(float (&d)[n], std::uint64_t a, std::uint64_t b, bool add) {
  emulated::wgmma<T>(d, n, nullptr, a, b, lines == Lines::depth, add);
}

#else

__device__ inline void note_shared_write(const void*, int) {}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
template <int n>
__device__ inline void settle(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int n>
__device__ inline void settle(std::uint32_t (&a)[n][4]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
  }
}
__device__ inline void fence_for_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// wgmma_TYPE_REGISTERS: D has so many registers, and twice as many columns. Of `add` is made the
// predicate scale-d; A and B are not negated; A's k runs along its lines.
#define ATOLL_WGMMA(TYPE, REGISTERS, COLUMNS, A0, A1, A2, A3, B, ADD, LINES)                    \
  template <int depth>                                                                          \
  __device__ inline void wgmma_##TYPE(float(&d)[REGISTERS], const std::uint32_t(&a)[4],         \
                                      std::uint64_t b, int add) {                               \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD                                        \
                 ", 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." #TYPE "." #TYPE         \
                 " {" ATOLL_WGMMA_NAMES_##REGISTERS "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B   \
                                                    ", p, 1, 1, " LINES ";\n}"                  \
                 : ATOLL_WGMMA_SUMS_##REGISTERS(d, 0)                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(depth));   \
  }                                                                                             \
  template <int depth>                                                                          \
  __device__ inline void wgmma_##TYPE(float(&d)[REGISTERS], std::uint64_t a, std::uint64_t b,   \
                                      int add) {                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " A2                                         \
                 ", 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." #TYPE "." #TYPE         \
                 " {" ATOLL_WGMMA_NAMES_##REGISTERS "}, " A0 ", " A1 ", p, 1, 1, 0, " A3 ";\n}" \
                 : ATOLL_WGMMA_SUMS_##REGISTERS(d, 0)                                           \
                 : "l"(a), "l"(b), "r"(add), "n"(depth));                                       \
  }
ATOLL_WGMMA(bf16, 32, "64", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
ATOLL_WGMMA(bf16, 64, "128", "%64", "%65", "%66", "%67", "%68", "%69", "%70")
ATOLL_WGMMA(bf16, 128, "256", "%128", "%129", "%130", "%131", "%132", "%133", "%134")
ATOLL_WGMMA(f16, 32, "64", "%32", "%33", "%34", "%35", "%36", "%37", "%38")
ATOLL_WGMMA(f16, 64, "128", "%64", "%65", "%66", "%67", "%68", "%69", "%70")
ATOLL_WGMMA(f16, 128, "256", "%128", "%129", "%130", "%131", "%132", "%133", "%134")
#undef ATOLL_WGMMA

template <class T, Lines lines, int n, class A>
__device__ inline void multiply(float (&d)[n], const A& a, std::uint64_t b, bool add) {
  constexpr int depth = lines == Lines::depth ? 1 : 0;
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    wgmma_bf16<depth>(d, a, b, add ? 1 : 0);
  } else {
    wgmma_f16<depth>(d, a, b, add ? 1 : 0);
  }
}

#else  // another architecture: kernels say so instead (has_wgmma)

__device__ inline void begin_products() {}
__device__ inline void commit_products() {}
template <int Pending>
__device__ inline void wait_products() {}
template <int n>
__device__ inline void settle(float (&)[n]) {}
template <int n>
__device__ inline void settle(std::uint32_t (&)[n][4]) {}
__device__ inline void fence_for_products() {}
template <class T, Lines lines, int n, class A>
__device__ inline void multiply(float (&)[n], const A&, std::uint64_t, bool) {}

#endif
#endif

/// Row, counted in the warpgroup, and column of element i of a thread's part of D.
__device__ inline int sum_row(int thread, int i) {
  return thread / warp_lanes * 16 + thread % warp_lanes / 4 + i / 2 % 2 * 8;
}
__device__ inline int sum_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}
// Of A in registers: word w of a thread has two adjacent elements of k from here on.
__device__ inline int left_row(int thread, int w) {
  return thread / warp_lanes * 16 + thread % warp_lanes / 4 + w % 2 * 8;
}
__device__ inline int left_depth(int thread, int w) {
  return thread % 4 * 2 + w / 2 * 8;
}

}  // namespace atl::compute::cuda
