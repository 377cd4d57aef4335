// The router in two launches (see groups.cuh): route_kernel, a warp per token, computes softmax and
// top-k, takes a replica for each choice and counts; place_kernel turns counts into places.

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/groups.cuh"

namespace atl::compute::cuda {

namespace {

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

/// Larger numbers for larger values of either sign; never 0. NaN counts as one value.
__device__ inline std::uint32_t ordered(float value) {
  if (value != value) return 0xffffffffU;
  const std::uint32_t bits = __float_as_uint(value);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

/// Larger values first, then lower indices; never 0.
__device__ inline std::uint64_t order_key(float value, int index) {
  return (static_cast<std::uint64_t>(ordered(value)) << 32U) |
         (0xffffffffU - static_cast<std::uint32_t>(index));
}

/// As choose(), with the largest sums of probability and offset; what a lane returns has the
/// probability alone.
template <int per_lane>
__device__ std::uint64_t choose_with(const float* offsets, const float (&p)[per_lane],
                                     const RouteArgs& args, int lane, float& chosen) {
  std::uint64_t keys[per_lane];  // 0: taken, or no expert
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    keys[i] = e < args.num_experts ? order_key(p[i] + offsets[e], e) : 0;
  }
  std::uint64_t mine = 0;
  chosen = 0;
  for (int j = 0; j < args.top_k; ++j) {
    std::uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) best = keys[i] > best ? keys[i] : best;
    best = warp_largest(best);
    std::uint64_t key = 0;  // in all lanes but the one that holds the expert
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      if (keys[i] != best) continue;
      key = rank_key(p[i], expert_of(best));
      keys[i] = 0;
    }
    key = warp_largest(key);
    mine = lane == j ? key : mine;
    chosen += probability_of(key);
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

/// Scores of a described router; by softmax_of_chosen, logits.
template <int per_lane>
__device__ void scores_of(const RouteArgs& args, const float* logits, int lane,
                          float (&p)[per_lane]) {
  const RouterScore score = args.router.score;
  if (score == RouterScore::softmax && args.logit_bias == nullptr) {
    return softmax(logits, args.num_experts, lane, p);
  }
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    p[i] = e < args.num_experts ? logits[e] : -INFINITY;
    if (e < args.num_experts && args.logit_bias != nullptr) p[i] += args.logit_bias[e];
    if (score == RouterScore::sigmoid) p[i] = 1.0F / (1.0F + expf(-p[i]));
  }
}

/// What group `group` of `size` experts is chosen by; in all lanes.
template <int per_lane>
__device__ float group_score(const float (&choices)[per_lane], const RouteArgs& args, int group,
                             int size, int lane) {
  std::uint64_t best = 0;
  std::uint64_t second = 0;
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    if (e >= args.num_experts || e / size != group) continue;
    const std::uint64_t key = order_key(choices[i], e);
    second = key > best ? best : (key > second ? key : second);
    best = key > best ? key : best;
  }
  const std::uint64_t first = warp_largest(best);
  const std::uint64_t next = warp_largest(best == first ? second : best);
  const auto value_of = [&](std::uint64_t key) {
    const auto bits = static_cast<std::uint32_t>(key >> 32U);
    return __uint_as_float((bits & 0x80000000U) != 0 ? bits & 0x7fffffffU : ~bits);
  };
  const bool two = args.router.group_score == GroupScore::two_best && size > 1;
  return two ? value_of(first) + value_of(next) : value_of(first);
}

/// Experts outside the best groups cannot be chosen. Lane g has the score of group g.
template <int per_lane>
__device__ void keep_best_groups(float (&choices)[per_lane], const RouteArgs& args, int lane) {
  const int size = args.num_experts / args.router.groups;
  std::uint64_t key = 0;
  for (int g = 0; g < args.router.groups; ++g) {
    const float score = group_score(choices, args, g, size, lane);
    key = lane == g ? order_key(score, g) : key;
  }
  unsigned kept = 0;
  for (int j = 0; j < args.router.top_groups; ++j) {
    const std::uint64_t best = warp_largest(key);
    kept |= 1U << static_cast<unsigned>(expert_of(best));
    key = key == best ? 0 : key;
  }
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    if (e < args.num_experts && ((kept >> static_cast<unsigned>(e / size)) & 1U) == 0) {
      choices[i] = -INFINITY;
    }
  }
}

/// An expert of lane j, and its weight.
struct Chosen {
  int expert = 0;
  float weight = 0;
};

/// By softmax, as it is or rescaled to sum 1.
template <int per_lane>
__device__ Chosen choose_plain(const RouteArgs& args, int token, int lane) {
  const std::int64_t row = std::int64_t{token} * args.num_experts;
  float p[per_lane];
  float chosen = 0;
  softmax(args.logits + row, args.num_experts, lane, p);
  std::uint64_t key =
      args.forced ? take(p, args, args.experts + std::int64_t{token} * args.top_k, lane, chosen)
                  : choose(p, args, lane, chosen);
  if (args.offsets != nullptr) {
    const float own = chosen;
    key = choose_with(args.offsets + row, p, args, lane, chosen);
    if (lane == 0) args.given_up[token] = own - chosen;
  }
  return {expert_of(key), args.renormalise ? probability_of(key) / chosen : probability_of(key)};
}

/// Lane j's expert and its score, of the largest sums of score, selection bias and `offsets` (null:
/// none), or of those that are given; `total` is the sum of all top_k scores.
template <int per_lane>
__device__ Chosen take_best(const RouteArgs& args, const float (&p)[per_lane], const float* offsets,
                            const std::int32_t* given, int lane, float& total) {
  float choices[per_lane];
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    choices[i] = p[i];
    if (e < args.num_experts && args.selection_bias != nullptr)
      choices[i] += args.selection_bias[e];
    if (e < args.num_experts && offsets != nullptr) choices[i] += offsets[e];
  }
  if (args.router.groups > 1) keep_best_groups(choices, args, lane);
  std::uint64_t keys[per_lane];  // 0: taken, or no expert
#pragma unroll
  for (int i = 0; i < per_lane; ++i) {
    const int e = lane + i * warp_lanes;
    keys[i] = e < args.num_experts ? order_key(choices[i], e) : 0;
  }
  Chosen mine;
  total = 0;
  for (int j = 0; j < args.top_k; ++j) {
    std::uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < per_lane; ++i) best = keys[i] > best ? keys[i] : best;
    best = warp_largest(best);
    const int expert = args.forced ? given[j] : expert_of(best);
    float value = 0;  // in all lanes but the one that holds the expert
#pragma unroll
    for (int i = 0; i < per_lane; ++i) {
      keys[i] = keys[i] == best ? 0 : keys[i];
      value = lane + i * warp_lanes == expert ? p[i] : value;
    }
    value = __shfl_sync(all_lanes, value, expert % warp_lanes);
    if (lane == j) mine = {expert, value};
    total += value;
  }
  return mine;
}

/// A described router's choice for one token, or the weights of experts that are given.
template <int per_lane>
__device__ Chosen choose_described(const RouteArgs& args, int token, int lane) {
  const std::int64_t row = std::int64_t{token} * args.num_experts;
  const std::int32_t* given = args.experts + std::int64_t{token} * args.top_k;
  float p[per_lane];
  scores_of(args, args.logits + row, lane, p);
  float total = 0;
  Chosen mine = take_best<per_lane>(args, p, nullptr, given, lane, total);
  if (args.offsets != nullptr) {
    const float own = total;
    mine = take_best<per_lane>(args, p, args.offsets + row, given, lane, total);
    if (lane == 0) args.given_up[token] = own - total;
  }
  if (args.router.score == RouterScore::softmax_of_chosen) {
    const bool chooses = lane < args.top_k;
    const float top = warp_max(chooses ? mine.weight : -INFINITY);
    const float e = chooses ? expf(mine.weight - top) : 0.0F;
    mine.weight = e / warp_sum(e);
    return mine;
  }
  if (args.renormalise) mine.weight /= fmaxf(total, args.router.normalise_floor);
  mine.weight *= args.router.scale;
  return mine;
}

/// Of a (token, choice): where its replica's rows, or its node's, begin.
struct Routed {
  RouteArgs args;

  template <class Before>
  __device__ void add(std::int64_t i, const Before& before) const {
    const ReplicaPlace& replica = args.replicas.replicas[args.chosen[i]];
    if (!args.for_nodes) {
      args.slots[i] += before(replica.place);
      return;
    }
    args.sent[i] += before(args.num_places + replica.node);
    if (args.slots[i] >= 0) {
      args.slots[i] += before(args.num_places + args.num_nodes + replica.node);
    }
  }
};

/// Lane j's replica of the token's j-th expert, an index into the table; kept in args.chosen.
__device__ inline std::int32_t choose_replica(const RouteArgs& args, int token, int lane,
                                              int expert) {
  const std::int64_t first = std::int64_t{token} * args.top_k;
  std::int32_t chosen = 0;
  if (lane < args.top_k) {
    chosen = args.replicas.first_of_expert[expert];
    if (!args.forced) args.experts[first + lane] = expert;
    args.chosen[first + lane] = chosen;
  }
  if (!args.has_replicas) return chosen;
  __syncwarp();
  if (lane == 0) {
    choose_replicas(args.replicas, args.experts + first, args.top_k, token, args.chosen + first);
  }
  __syncwarp();
  return lane < args.top_k ? args.chosen[first + lane] : 0;
}

/// Counts one token's rows; lane j has chosen its j-th replica, `counts` are the warp's.
__device__ inline void count_token(const RouteArgs& args, std::int32_t* counts, int token, int lane,
                                   std::int32_t chosen) {
  const std::int64_t at = std::int64_t{token} * args.top_k + lane;
  const bool chooses = lane < args.top_k;
  std::int32_t node = -1;
  if (chooses) {
    const ReplicaPlace& replica = args.replicas.replicas[chosen];
    const std::int32_t before = counts[replica.place]++;  // a token's experts are distinct
    if (!args.for_nodes) args.slots[at] = before;
    node = replica.node;
  }
  if (!args.counts_nodes()) return;
  const unsigned on_node = __match_any_sync(all_lanes, node);
  const int earlier = __popc(on_node & ((1U << static_cast<unsigned>(lane)) - 1U));
  const bool folded = __popc(on_node) == args.top_k;  // that node adds up all of them
  std::int32_t* rows = counts + args.num_places;
  std::int32_t* returns = rows + args.num_nodes;
  if (chooses && args.for_nodes) {
    args.sent[at] = rows[node];
    args.slots[at] = folded && earlier > 0 ? -1 : returns[node] + earlier;
  }
  __syncwarp();
  if (chooses && earlier == 0) {
    ++rows[node];
    returns[node] += folded ? 1 : __popc(on_node);
  }
}

template <int per_lane>
__global__ void __launch_bounds__(group_threads)
    route_kernel(RouteArgs args, Groups groups, int tokens_per_warp) {
  std::int32_t* all_counts = dynamic_shared<std::int32_t>();
  std::int32_t* counts = begin_tile(groups, all_counts);
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int top_k = args.top_k;
  const WarpRows tokens = rows_of_warp(tokens_per_warp, args.num_tokens);
  for (int t = tokens.first; t < tokens.last; ++t) {
    const std::int64_t first = std::int64_t{t} * top_k;
    const Chosen mine = args.described ? choose_described<per_lane>(args, t, lane)
                                       : choose_plain<per_lane>(args, t, lane);
    if (lane < top_k && !args.forced_weights) args.weights[first + lane] = mine.weight;
    const std::int32_t replica = choose_replica(args, t, lane, mine.expert);
    count_token(args, counts, t, lane, replica);
    __syncwarp();
  }
  end_tile(groups, all_counts, Routed{args}, tokens, top_k);
}

template <int per_lane>
void launch_route(cudaStream_t stream, const RouteArgs& args, const Groups& groups) {
  const GroupTiles tiles(args.num_tokens);
  launch(stream, "route", &route_kernel<per_lane>, dim3(static_cast<unsigned>(tiles.count)),
         group_threads, tile_shared_bytes(groups), args, groups, tiles.rows_per_warp);
}

}  // namespace

void route(cudaStream_t stream, const RouteArgs& args) {
  Groups groups;
  groups.count = args.num_counts();
  groups.ends[0] = args.num_places;
  if (args.counts_nodes()) {
    groups.ends[1] = args.num_places + args.num_nodes;
    groups.ends[2] = args.num_places + 2 * args.num_nodes;
  }
  groups.counts = args.counts;
  groups.scratch = args.scratch;
  if (args.num_experts <= warp_lanes) {
    launch_route<1>(stream, args, groups);
  } else if (args.num_experts <= 2 * warp_lanes) {
    launch_route<2>(stream, args, groups);
  } else if (args.num_experts <= 4 * warp_lanes) {
    launch_route<4>(stream, args, groups);
  } else {
    launch_route<max_experts / warp_lanes>(stream, args, groups);
  }
  launch_place(stream, "route", Routed{args}, groups, args.num_tokens, args.top_k);
}

}  // namespace atl::compute::cuda
