#pragma once
// What every kernel builds on: element types, 16-byte accesses, sums over warps and blocks,
// launches.
//
// Rules for device code here, so that a host compiler can build and run it too, on an emulated
// device in the tests:
//   - kernels are launched by launch() below, that is by cudaLaunchKernelEx;
//   - shared memory comes from dynamic_shared() alone;
//   - tensor cores are reached through nvcuda::wmma (16x16x16), whose fragments are used only as
//     documented: which element a lane holds is asked of the hardware, never assumed;
//   - collectives of a warp take all 32 lanes and stand in uniform control flow;
//   - PTX stands in this file only, each piece beside a portable equivalent.
// Sums run in an order fixed by the shape of a row alone, so that results do not depend on what
// else a launch computes. There are no float atomics.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cmath>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "compute/types.hpp"

namespace atl::compute::cuda {

/// Throws Error unless the call succeeded; `call` is the function's name.
void check(cudaError_t code, std::string_view call);

inline constexpr int warp_lanes = 32;
inline constexpr unsigned all_lanes = 0xffffffffU;
inline constexpr int access_bytes = 16;

/// The block's dynamic shared memory; aligned to 128 bytes where its size is a multiple of that.
template <class T>
__device__ inline T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char atoll_dynamic_shared[];
  return reinterpret_cast<T*>(atoll_dynamic_shared);
#else
  return static_cast<T*>(emulated::dynamic_shared_memory());
#endif
}

/// Starts copying 16 bytes to shared memory, or zeros where `valid` is false (`from` is not read
/// then). Both are aligned to 16 bytes. Complete after commit_copies() and wait_copies().
__device__ inline void copy_async(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? access_bytes : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
#else
  emulated::copy_async(to, valid ? from : nullptr, access_bytes);
#endif
}

/// Ends a group of copies of this thread.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulated::commit_copies();
#endif
}

/// Returns when all but the newest `Pending` groups of this thread's copies are complete. Other
/// threads see them after a barrier.
template <int Pending>
__device__ inline void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  emulated::wait_copies(Pending);
#endif
}

/// 2^x to about 2 units in the last place; results below 2^-126 become 0. exp2_fast(0) is 1.
__device__ inline float exp2_fast(float x) {
#ifdef __CUDACC__
  float result = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const float result = exp2f(x);
  return result < 1.17549435e-38F ? 0.0F : result;
#endif
}

// ---- tensor cores ----

template <class T, class Layout>
using LeftTile = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, Layout>;
template <class T, class Layout>
using RightTile = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, Layout>;
using SumTile = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;

// wmma::load_matrix_sync from shared memory. mma.h takes generic pointers, and the compiler does
// not find out by itself that those to 16-bit elements are to shared memory: its loads are then
// slower. The registers are the fragment's own, in the order in which mma.h fills them.
#ifdef __CUDACC__
#define ATOLL_LOAD_TILE(FRAGMENT, TYPE, LAYOUT, SIDE, ORDER)                                 \
  __device__ inline void load_tile(FRAGMENT<TYPE, LAYOUT>& tile, const TYPE* from,           \
                                   unsigned stride) {                                        \
    auto* r = reinterpret_cast<unsigned*>(tile.x);                                           \
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(from));              \
    if constexpr (sizeof(tile.x) == 16) {                                                    \
      asm volatile("wmma.load." SIDE ".sync.aligned." ORDER                                  \
                   ".m16n16k16.shared.bf16 {%0, %1, %2, %3}, [%4], %5;"                      \
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                          \
                   : "r"(address), "r"(stride)                                               \
                   : "memory");                                                              \
    } else {                                                                                 \
      asm volatile("wmma.load." SIDE ".sync.aligned." ORDER                                  \
                   ".m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"       \
                   : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]), "=r"(r[4]), "=r"(r[5]), \
                     "=r"(r[6]), "=r"(r[7])                                                  \
                   : "r"(address), "r"(stride)                                               \
                   : "memory");                                                              \
    }                                                                                        \
  }
ATOLL_LOAD_TILE(LeftTile, __nv_bfloat16, nvcuda::wmma::row_major, "a", "row")
ATOLL_LOAD_TILE(RightTile, __nv_bfloat16, nvcuda::wmma::row_major, "b", "row")
ATOLL_LOAD_TILE(RightTile, __nv_bfloat16, nvcuda::wmma::col_major, "b", "col")
ATOLL_LOAD_TILE(LeftTile, __half, nvcuda::wmma::row_major, "a", "row")
ATOLL_LOAD_TILE(RightTile, __half, nvcuda::wmma::row_major, "b", "row")
ATOLL_LOAD_TILE(RightTile, __half, nvcuda::wmma::col_major, "b", "col")
#undef ATOLL_LOAD_TILE
#else
template <class Fragment, class T>
__device__ inline void load_tile(Fragment& tile, const T* from, unsigned stride) {
  nvcuda::wmma::load_matrix_sync(tile, from, stride);
}
#endif

// ---- elements ----

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}

template <class T>
__device__ inline T round_to(float x);
template <>
__device__ inline float round_to<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 round_to<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half round_to<__half>(float x) {
  return __float2half_rn(x);
}

/// Elements of a 16-byte access.
template <class T>
inline constexpr int wide = access_bytes / static_cast<int>(sizeof(T));

/// Two elements as they lie in one 32-bit word, the first in the low half.
template <class T>
__device__ inline void unpack(std::uint32_t word, float* to) {
  if constexpr (sizeof(T) == 4) {
    to[0] = __uint_as_float(word);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    to[0] = __uint_as_float(word << 16U);
    to[1] = __uint_as_float(word & 0xffff0000U);
  } else {
    to[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffU)));
    to[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16U)));
  }
}
template <class T>
__device__ inline std::uint32_t pack_word(const float* from) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(from[0]);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(from[0], from[1]);
    return __bfloat16_as_ushort(both.x) |
           (static_cast<std::uint32_t>(__bfloat16_as_ushort(both.y)) << 16U);
  } else {
    const __half2 both = __floats2half2_rn(from[0], from[1]);
    return __half_as_ushort(__low2half(both)) |
           (static_cast<std::uint32_t>(__half_as_ushort(__high2half(both))) << 16U);
  }
}

/// N elements as they are held between memory and arithmetic: N = wide<T> (one 16-byte access), or
/// 1 where a row's width or address does not allow that.
template <class T, int N>
struct Raw {
  static_assert(N == 1 || N == wide<T>);
  std::conditional_t<N == 1, T, uint4> bits;
};

template <int N, class T>
__device__ inline Raw<T, N> load_raw(const T* from) {
  if constexpr (N == 1) {
    return {*from};
  } else {
    return {*reinterpret_cast<const uint4*>(from)};
  }
}
template <int N, class T>
__device__ inline void store_raw(T* to, const Raw<T, N>& raw) {
  if constexpr (N == 1) {
    *to = raw.bits;
  } else {
    *reinterpret_cast<uint4*>(to) = raw.bits;
  }
}
template <class T, int N>
__device__ inline void to_floats(const Raw<T, N>& raw, float (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = to_float(raw.bits);
  } else {
    constexpr int step = N / 4;
    unpack<T>(raw.bits.x, to);
    unpack<T>(raw.bits.y, to + step);
    unpack<T>(raw.bits.z, to + 2 * step);
    unpack<T>(raw.bits.w, to + 3 * step);
  }
}
template <class T, int N>
__device__ inline Raw<T, N> to_raw(const float (&from)[N]) {
  if constexpr (N == 1) {
    return {round_to<T>(from[0])};
  } else {
    constexpr int step = N / 4;
    return {uint4{pack_word<T>(from), pack_word<T>(from + step), pack_word<T>(from + 2 * step),
                  pack_word<T>(from + 3 * step)}};
  }
}

/// N floats; 16 bytes at a time where N allows it (then `from` is aligned to 16 bytes).
template <int N>
__device__ inline void load_floats(const float* from, float (&to)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      to[i] = four.x;
      to[i + 1] = four.y;
      to[i + 2] = four.z;
      to[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from[i];
  }
}

template <int N>
__device__ inline void store_floats(float* to, const float (&from)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      *reinterpret_cast<float4*>(to + i) = float4{from[i], from[i + 1], from[i + 2], from[i + 3]};
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from[i];
  }
}

// ---- sums ----

/// The same value in all lanes: pairs of lanes are added in the same tree every time.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lane = warp_lanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(all_lanes, x, lane);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int lane = warp_lanes / 2; lane > 0; lane /= 2) {
    x = fmaxf(x, __shfl_xor_sync(all_lanes, x, lane));
  }
  return x;
}

/// Sum over the block, the same in all its threads; `partial` is shared memory for one float per
/// warp, free again after the next barrier. The block is a whole number of warps.
__device__ inline float block_sum(float x, float* partial) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int warps = static_cast<int>(blockDim.x) / warp_lanes;
  x = warp_sum(x);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? partial[lane] : 0.0F);
}
__device__ inline float block_max(float x, float* partial) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int warps = static_cast<int>(blockDim.x) / warp_lanes;
  x = warp_max(x);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  return warp_max(partial[lane < warps ? lane : 0]);
}

/// 1 / sqrt(squares / width + eps); NaN where the squares are not finite: 0, the inverse of
/// infinity, would hide an overflow.
__device__ inline float inverse_rms(float squares, int width, float eps) {
  const float inverse = 1.0F / sqrtf(squares / static_cast<float>(width) + eps);
  return inverse > 0 ? inverse : NAN;
}

// ---- host side ----

/// Enqueues `kernel`; does nothing for an empty grid.
template <class... Parameters, class... Arguments>
void launch(cudaStream_t stream, std::string_view name, void (*kernel)(Parameters...), dim3 grid,
            unsigned threads, std::size_t shared_bytes, Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  constexpr std::size_t without_asking = 48 * 1024;
  if (shared_bytes > without_asking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
    // As much of it as there is, so that as many blocks as fit run beside one another.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                               cudaSharedmemCarveoutMaxShared),
          name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...), name);
}

template <class T>
struct Element {
  using type = T;
};

/// Calls action(Element<T>{}) with the device type of `dtype`.
template <class Action>
void with_element(DType dtype, Action&& action) {
  switch (dtype) {
    case DType::bfloat16:
      return action(Element<__nv_bfloat16>{});
    case DType::float16:
      return action(Element<__half>{});
    case DType::float32:
      return action(Element<float>{});
    case DType::uint8:
      break;  // on file only
  }
}

/// True where rows of `width` elements from all of these pointers (null ones do not count) begin at
/// multiples of 16 bytes.
template <class... Pointers>
bool rows_are_aligned(std::size_t row_bytes, Pointers... pointers) {
  return row_bytes % access_bytes == 0 &&
         ((reinterpret_cast<std::uintptr_t>(pointers) % access_bytes == 0) && ...);
}

inline int divide_up(std::int64_t a, std::int64_t b) {
  return static_cast<int>((a + b - 1) / b);
}

/// A whole number of warps, between one and `most` threads, for `work` items of `each` per thread.
inline int threads_for(std::int64_t work, int each, int most) {
  const std::int64_t threads = (work + each - 1) / each;
  const std::int64_t whole = (threads + warp_lanes - 1) / warp_lanes * warp_lanes;
  return static_cast<int>(whole < warp_lanes ? warp_lanes : (whole > most ? most : whole));
}

}  // namespace atl::compute::cuda
