// Stands before the toolkit's header of the same name, so that a .cu file compiles as C++: device
// code becomes ordinary functions that run on the fibers of block.hpp. Everything of the runtime
// that is not device code comes from the toolkit's own cuda_runtime_api.h.
#pragma once

#undef __shared__
#define __shared__ static
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
/// Defined where device code runs on the host.
#define ATOLL_EMULATED_CUDA 1

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "tests/emulated_cuda/block.hpp"

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = emulated::warp_size;

namespace emulated {

using Where = std::source_location;

/// A launch configuration and where it was given.
struct ConfigHere {
  // NOLINTNEXTLINE(google-explicit-constructor): converts where a kernel is launched
  ConfigHere(const cudaLaunchConfig_t* given, const Where& here = Where::current())
      : config(given), where(here) {}
  const cudaLaunchConfig_t* config;
  Where where;
};

/// What each lane brings to a shuffle, vote or reduction, and what it takes away.
template <class T>
struct Exchange {
  T in{};
  int lane = 0;
  int parameter = 0;
  int width = warp_size;
  T out{};
  const Where* where = nullptr;
};

template <class T>
T run_exchange(unsigned mask, Exchange<T> mine, ApplyCollective apply, const char* name,
               const Where& where) {
  mine.lane = lane_of_thread();
  mine.where = &where;
  warp_collective(mask, &mine, apply, name, where);
  return mine.out;
}

/// `source` gives the lane from which a lane reads.
template <class T, class Source>
void shuffle(void* const* lanes, const char* name, Source source) {
  for (int i = 0; i < warp_size; ++i) {
    if (lanes[i] == nullptr) continue;
    auto& to = *static_cast<Exchange<T>*>(lanes[i]);
    const auto* from = static_cast<const Exchange<T>*>(lanes[source(i, to.parameter, to.width)]);
    if (from == nullptr) device_error(name, *to.where, "reads from a lane that does not take part");
    to.out = from->in;
  }
}

template <class T, class Combine>
void reduce(void* const* lanes, Combine combine) {
  bool first = true;
  T sum{};
  for (int i = 0; i < warp_size; ++i) {
    if (lanes[i] == nullptr) continue;
    const T value = static_cast<Exchange<T>*>(lanes[i])->in;
    sum = first ? value : combine(sum, value);
    first = false;
  }
  for (int i = 0; i < warp_size; ++i)
    if (lanes[i] != nullptr) static_cast<Exchange<T>*>(lanes[i])->out = sum;
}

}  // namespace emulated

// ---- launch ----

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const emulated::ConfigHere& at, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
  emulated::Launch launch{*at.config, at.where,
                          [kernel, values] { std::apply(kernel, values); }};
  return emulated::launch(reinterpret_cast<const void*>(kernel), std::move(launch));
}

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  return ::cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                          void (*kernel)(Parameters...),
                                                          int block_size, size_t shared_bytes) {
  return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), block_size, shared_bytes);
}

// ---- barriers, fences, votes ----

inline void __syncthreads(const emulated::Where& where = emulated::Where::current()) {
  emulated::block_barrier(false, "__syncthreads", where);
}
inline int __syncthreads_count(int predicate,
                               const emulated::Where& where = emulated::Where::current()) {
  return emulated::block_barrier(predicate != 0, "__syncthreads_count", where);
}
inline int __syncthreads_or(int predicate,
                            const emulated::Where& where = emulated::Where::current()) {
  return static_cast<int>(emulated::block_barrier(predicate != 0, "__syncthreads_or", where) > 0);
}
inline int __syncthreads_and(int predicate,
                             const emulated::Where& where = emulated::Where::current()) {
  return static_cast<int>(emulated::block_barrier(predicate == 0, "__syncthreads_and", where) == 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffU,
                       const emulated::Where& where = emulated::Where::current()) {
  emulated::warp_collective(mask, nullptr, nullptr, "__syncwarp", where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap(const emulated::Where& where = emulated::Where::current()) {
  emulated::device_error("__trap", where, "called");
}
inline unsigned __activemask() { return emulated::living_lanes(); }

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const emulated::Where& where = emulated::Where::current()) {
  using Vote = emulated::Exchange<unsigned>;
  Vote mine;
  mine.in = predicate != 0 ? 1U << emulated::lane_of_thread() : 0U;
  constexpr auto apply = [](void* const* lanes) {
    emulated::reduce<unsigned>(lanes, [](unsigned a, unsigned b) { return a | b; });
  };
  return emulated::run_exchange<unsigned>(mask, mine, apply, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int predicate,
                      const emulated::Where& where = emulated::Where::current()) {
  return static_cast<int>(__ballot_sync(mask, predicate, where) != 0);
}
inline int __all_sync(unsigned mask, int predicate,
                      const emulated::Where& where = emulated::Where::current()) {
  return static_cast<int>(__ballot_sync(mask, predicate == 0 ? 1 : 0, where) == 0);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          const emulated::Where& where = emulated::Where::current()) {
  struct Match {
    T value;
    unsigned same;
  } mine{value, 0};
  emulated::warp_collective(
      mask, &mine,
      [](void* const* lanes) {
        for (int i = 0; i < emulated::warp_size; ++i)
          for (int j = 0; j < emulated::warp_size; ++j)
            if (lanes[i] != nullptr && lanes[j] != nullptr &&
                static_cast<Match*>(lanes[i])->value == static_cast<Match*>(lanes[j])->value)
              static_cast<Match*>(lanes[i])->same |= 1U << j;
      },
      "__match_any_sync", where);
  return mine.same;
}

// ---- shuffles and reductions of a warp ----

#define ATOLL_EMULATED_SHUFFLE(NAME, SOURCE)                                                       \
  template <class T>                                                                               \
  T NAME(unsigned mask, T value, int parameter, int width = emulated::warp_size,                   \
         const emulated::Where& where = emulated::Where::current()) {                              \
    emulated::Exchange<T> mine;                                                                    \
    mine.in = value;                                                                               \
    mine.parameter = parameter;                                                                    \
    mine.width = width;                                                                            \
    constexpr auto apply = [](void* const* lanes) {                                                \
      emulated::shuffle<T>(lanes, #NAME, [](int lane, int p, int w) { return SOURCE; });           \
    };                                                                                             \
    return emulated::run_exchange<T>(mask, mine, apply, #NAME, where);                             \
  }
ATOLL_EMULATED_SHUFFLE(__shfl_sync, (lane & ~(w - 1)) | (p & (w - 1)))
ATOLL_EMULATED_SHUFFLE(__shfl_xor_sync, (lane ^ p) > (lane | (w - 1)) ? lane : (lane ^ p))
ATOLL_EMULATED_SHUFFLE(__shfl_up_sync, lane - p < (lane & ~(w - 1)) ? lane : lane - p)
ATOLL_EMULATED_SHUFFLE(__shfl_down_sync, lane + p > (lane | (w - 1)) ? lane : lane + p)
#undef ATOLL_EMULATED_SHUFFLE

#define ATOLL_EMULATED_REDUCE(NAME, COMBINE)                                                       \
  template <class T>                                                                               \
  T NAME(unsigned mask, T value, const emulated::Where& where = emulated::Where::current()) {      \
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);                          \
    emulated::Exchange<T> mine;                                                                    \
    mine.in = value;                                                                               \
    constexpr auto apply = [](void* const* lanes) {                                                \
      emulated::reduce<T>(lanes, [](T a, T b) -> T { return COMBINE; });                           \
    };                                                                                             \
    return emulated::run_exchange<T>(mask, mine, apply, #NAME, where);                             \
  }
ATOLL_EMULATED_REDUCE(__reduce_add_sync, a + b)
ATOLL_EMULATED_REDUCE(__reduce_min_sync, a < b ? a : b)
ATOLL_EMULATED_REDUCE(__reduce_max_sync, a < b ? b : a)
ATOLL_EMULATED_REDUCE(__reduce_or_sync, a | b)
ATOLL_EMULATED_REDUCE(__reduce_and_sync, a& b)
#undef ATOLL_EMULATED_REDUCE

// ---- atomics: one thread runs at a time ----

#define ATOLL_EMULATED_ATOMIC(NAME, RESULT)         \
  template <class T>                                \
  T NAME(T* address, std::type_identity_t<T> b) {   \
    const T a = *address;                           \
    *address = static_cast<T>(RESULT);              \
    return a;                                       \
  }
ATOLL_EMULATED_ATOMIC(atomicAdd, a + b)
ATOLL_EMULATED_ATOMIC(atomicSub, a - b)
ATOLL_EMULATED_ATOMIC(atomicMin, a < b ? a : b)
ATOLL_EMULATED_ATOMIC(atomicMax, a < b ? b : a)
ATOLL_EMULATED_ATOMIC(atomicOr, a | b)
ATOLL_EMULATED_ATOMIC(atomicAnd, a& b)
ATOLL_EMULATED_ATOMIC(atomicXor, a ^ b)
ATOLL_EMULATED_ATOMIC(atomicExch, b)
ATOLL_EMULATED_ATOMIC(atomicInc, a >= b ? 0 : a + 1)
#undef ATOLL_EMULATED_ATOMIC
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

// ---- loads and stores with a cache hint ----

#define ATOLL_EMULATED_LOAD(NAME) \
  template <class T>              \
  T NAME(const T* address) {      \
    return *address;              \
  }
ATOLL_EMULATED_LOAD(__ldg)
ATOLL_EMULATED_LOAD(__ldcg)
ATOLL_EMULATED_LOAD(__ldca)
ATOLL_EMULATED_LOAD(__ldcs)
ATOLL_EMULATED_LOAD(__ldlu)
ATOLL_EMULATED_LOAD(__ldcv)
#undef ATOLL_EMULATED_LOAD
#define ATOLL_EMULATED_STORE(NAME)                             \
  template <class T>                                           \
  void NAME(T* address, const std::type_identity_t<T>& value) { \
    *address = value;                                          \
  }
ATOLL_EMULATED_STORE(__stwb)
ATOLL_EMULATED_STORE(__stcg)
ATOLL_EMULATED_STORE(__stcs)
ATOLL_EMULATED_STORE(__stwt)
#undef ATOLL_EMULATED_STORE

// ---- arithmetic ----

inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0F, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __tanhf(float x) { return std::tanh(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __frcp_rn(float x) { return 1.0F / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return 1.0F / std::sqrt(x); }
inline float __saturatef(float x) { return std::min(std::max(x, 0.0F), 1.0F); }
inline float rsqrtf(float x) { return 1.0F / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float fdividef(float x, float y) { return x / y; }

inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(a) * b) >> 32U);
}
inline int __mul24(int a, int b) { return a * b; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (unsigned i = 0; i < 32; ++i) reversed |= ((x >> i) & 1U) << (31U - i);
  return reversed;
}

#define ATOLL_EMULATED_MIN_MAX(TYPE)                               \
  constexpr TYPE min(TYPE a, TYPE b) { return b < a ? b : a; }     \
  constexpr TYPE max(TYPE a, TYPE b) { return a < b ? b : a; }
ATOLL_EMULATED_MIN_MAX(int)
ATOLL_EMULATED_MIN_MAX(unsigned)
ATOLL_EMULATED_MIN_MAX(long)
ATOLL_EMULATED_MIN_MAX(unsigned long)
ATOLL_EMULATED_MIN_MAX(long long)
ATOLL_EMULATED_MIN_MAX(unsigned long long)
ATOLL_EMULATED_MIN_MAX(float)
ATOLL_EMULATED_MIN_MAX(double)
#undef ATOLL_EMULATED_MIN_MAX

inline long long clock64() { return __builtin_ia32_rdtsc(); }
