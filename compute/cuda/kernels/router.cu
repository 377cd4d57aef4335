// The router in two launches.
//
// route_kernel: a warp per token computes softmax and top-k; a block of 16 warps owns a tile of
// consecutive tokens and counts its rows per expert. slot_kernel: a block per tile adds up the
// counts of the tiles before it and those of the experts sent before. All sums are of integers, and
// a row's place follows from the order of tokens alone.

#include <algorithm>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"
#include "compute/cuda/plan/workspace.hpp"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 512;
constexpr int warps = threads / warp_lanes;
static_assert(threads == max_experts, "a thread per expert");

/// A probability and its expert as one number: larger probabilities first, then lower experts. NaN,
/// whose bits the hardware chooses, counts as one value.
__device__ inline std::uint64_t rank_key(float probability, int expert) {
  constexpr std::uint32_t nan = 0x7fc00000U;
  std::uint32_t bits = __float_as_uint(probability);
  if ((bits & 0x7fffffffU) > 0x7f800000U) bits = nan;
  return (static_cast<std::uint64_t>(bits) << 32U) |
         (0xffffffffU - static_cast<std::uint32_t>(expert));
}
__device__ inline int expert_of(std::uint64_t key) {
  return static_cast<int>(0xffffffffU - static_cast<std::uint32_t>(key));
}
__device__ inline float probability_of(std::uint64_t key) {
  return __uint_as_float(static_cast<std::uint32_t>(key >> 32U));
}

__device__ inline std::uint64_t warp_largest(std::uint64_t key) {
#pragma unroll
  for (int lane = warp_lanes / 2; lane > 0; lane /= 2) {
    const std::uint64_t other = __shfl_xor_sync(all_lanes, key, lane);
    key = other > key ? other : key;
  }
  return key;
}

/// Softmax over a row of logits; lane l holds the probabilities of experts l, l + 32, ...
template <int per_lane>
__device__ void softmax(const float* logits, int num_experts, int lane, float (&p)[per_lane]) {
  float top = -INFINITY;
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    p[i] = e < num_experts ? logits[e] : -INFINITY;
    top = fmaxf(top, p[i]);
  }
  top = warp_max(top);
  float total = 0;
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    p[i] = lane + i * warp_lanes < num_experts ? expf(p[i] - top) : 0.0F;
    total += p[i];
  }
  total = warp_sum(total);
#pragma unroll
  for (int i = 0; i < per_lane; ++i) p[i] /= total;
}

/// Lane j returns the j-th largest of the probabilities; `chosen` is the sum of all top_k.
template <int per_lane>
__device__ std::uint64_t choose(const float (&p)[per_lane], const RouteArgs& args, int lane,
                                float& chosen) {
  std::uint64_t keys[per_lane];  // 0: taken, or no expert
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    keys[i] = e < args.num_experts ? rank_key(p[i], e) : 0;
  }
  std::uint64_t mine = 0;
  chosen = 0;
  for (int j = 0; j < args.top_k; ++j) {
    std::uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) best = keys[i] > best ? keys[i] : best;
    best = warp_largest(best);
#pragma unroll
    for (int i = 0; i < per_lane; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
    mine = lane == j ? best : mine;
    chosen += probability_of(best);
  }
  return mine;
}

/// Lane j returns the probability of the expert at `experts`[j] as choose() does; `chosen`
/// likewise.
template <int per_lane>
__device__ std::uint64_t take(const float (&p)[per_lane], const RouteArgs& args,
                              const std::int32_t* experts, int lane, float& chosen) {
  std::uint64_t mine = 0;
  chosen = 0;
  for (int j = 0; j < args.top_k; ++j) {
    const int expert = experts[j];
    std::uint64_t key = 0;  // in all lanes but the one that holds the expert
#pragma unroll
    for (int i = 0; i < per_lane; ++i)
      key = lane + i * warp_lanes == expert ? rank_key(p[i], expert) : key;
    key = warp_largest(key);
    mine = lane == j ? key : mine;
    chosen += probability_of(key);
  }
  return mine;
}

/// Writes experts and weights of a tile's tokens, their rank among the tile's rows of the same
/// expert (to `slots`), and the tile's counts (to scratch [tiles][experts]).
template <int per_lane>
__global__ void __launch_bounds__(threads) route_kernel(RouteArgs args, int tokens_per_warp) {
  std::int32_t* counts = dynamic_shared<std::int32_t>();  // [warps][experts]
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / warp_lanes;
  const int lane = thread % warp_lanes;
  const int num_experts = args.num_experts;
  for (int i = thread; i < warps * num_experts; i += threads) counts[i] = 0;
  __syncthreads();
  const int first = (static_cast<int>(blockIdx.x) * warps + warp) * tokens_per_warp;
  const int last = min(first + tokens_per_warp, args.num_tokens);
  for (int t = first; t < last; ++t) {
    float p[per_lane];
    float chosen = 0;
    softmax(args.logits + std::int64_t{t} * num_experts, num_experts, lane, p);
    const std::int64_t first_pair = std::int64_t{t} * args.top_k;
    const std::uint64_t key = args.forced ? take(p, args, args.experts + first_pair, lane, chosen)
                                          : choose(p, args, lane, chosen);
    if (lane < args.top_k) {
      const std::int64_t at = first_pair + lane;
      const int expert = expert_of(key);
      if (!args.forced) args.experts[at] = expert;
      if (!args.forced_weights) {
        args.weights[at] = args.renormalise ? probability_of(key) / chosen : probability_of(key);
      }
      args.slots[at] = counts[warp * num_experts + expert]++;  // a token's experts are distinct
    }
    __syncwarp();
  }
  __syncthreads();
  if (thread < num_experts) {
    int total = 0;
    for (int w = 0; w < warps; ++w) {
      const int count = counts[w * num_experts + thread];
      counts[w * num_experts + thread] = total;
      total += count;
    }
    args.scratch[static_cast<int>(blockIdx.x) * num_experts + thread] = total;
  }
  __syncthreads();
  const std::int64_t begin = std::int64_t{first} * args.top_k;
  const std::int64_t end = std::int64_t{last} * args.top_k;
  for (std::int64_t i = begin + lane; i < end; i += warp_lanes) {
    args.slots[i] += counts[warp * num_experts + args.experts[i]];
  }
}

/// Turns `values` [threads] in shared memory into sums of those before each.
__device__ inline void exclusive_scan(std::int32_t* values, int thread) {
  for (int distance = 1; distance < threads; distance *= 2) {
    const std::int32_t before = thread >= distance ? values[thread - distance] : 0;
    __syncthreads();
    values[thread] += before;
    __syncthreads();
  }
  const std::int32_t inclusive = thread > 0 ? values[thread - 1] : 0;
  __syncthreads();
  values[thread] = inclusive;
  __syncthreads();
}

/// Adds to the ranks of tile blockIdx.x what comes before that tile; block 0 also writes the
/// counts.
__global__ void __launch_bounds__(threads)
    slot_kernel(RouteArgs args, int tokens_per_tile, int num_tiles) {
  std::int32_t* totals = dynamic_shared<std::int32_t>();  // [max_experts], of all tiles
  std::int32_t* before = totals + max_experts;            // of the tiles before this one
  std::int32_t* places = before + max_experts;            // rows in the order of sending
  const int thread = static_cast<int>(threadIdx.x);
  const int tile = static_cast<int>(blockIdx.x);
  totals[thread] = 0;
  before[thread] = 0;
  places[thread] = 0;
  __syncthreads();
  // A thread adds up every `stride`-th tile for one expert.
  const int stride = threads / args.num_experts;
  const int expert = thread % args.num_experts;
  int total = 0;
  int prefix = 0;
  if (thread < stride * args.num_experts) {
#pragma unroll 8
    for (int i = thread / args.num_experts; i < num_tiles; i += stride) {
      const int count = args.scratch[i * args.num_experts + expert];
      total += count;
      prefix += i < tile ? count : 0;
    }
    atomicAdd(&totals[expert], total);
    atomicAdd(&before[expert], prefix);
  }
  __syncthreads();
  if (thread < args.num_experts) {
    places[args.send_order[thread]] = totals[thread];
    if (tile == 0) args.counts[args.send_order[thread]] = totals[thread];
  }
  __syncthreads();
  exclusive_scan(places, thread);
  const std::int64_t begin = std::int64_t{tile} * tokens_per_tile * args.top_k;
  const std::int64_t end = min(begin + std::int64_t{tokens_per_tile} * args.top_k,
                               static_cast<std::int64_t>(args.num_tokens) * args.top_k);
  for (std::int64_t i = begin + thread; i < end; i += threads) {
    const int e = args.experts[i];
    args.slots[i] += before[e] + places[args.send_order[e]];
  }
}

template <int per_lane>
void launch_route(cudaStream_t stream, const RouteArgs& args, int tokens_per_warp, int num_tiles) {
  launch(stream, "route", &route_kernel<per_lane>, dim3(static_cast<unsigned>(num_tiles)), threads,
         static_cast<std::size_t>(warps * args.num_experts) * sizeof(std::int32_t), args,
         tokens_per_warp);
}

}  // namespace

void route(cudaStream_t stream, const RouteArgs& args) {
  const int tokens_per_warp = std::max(1, divide_up(args.num_tokens, warps * max_route_tiles));
  const int tokens_per_tile = warps * tokens_per_warp;
  const int num_tiles = divide_up(args.num_tokens, tokens_per_tile);
  if (args.num_experts <= warp_lanes) {
    launch_route<1>(stream, args, tokens_per_warp, num_tiles);
  } else if (args.num_experts <= 2 * warp_lanes) {
    launch_route<2>(stream, args, tokens_per_warp, num_tiles);
  } else if (args.num_experts <= 4 * warp_lanes) {
    launch_route<4>(stream, args, tokens_per_warp, num_tiles);
  } else {
    launch_route<max_experts / warp_lanes>(stream, args, tokens_per_warp, num_tiles);
  }
  // Without tokens too: the counts are then zeros.
  launch(stream, "route", &slot_kernel, dim3(static_cast<unsigned>(std::max(1, num_tiles))),
         threads, std::size_t{3} * max_experts * sizeof(std::int32_t), args, tokens_per_tile,
         num_tiles);
}

}  // namespace atl::compute::cuda
