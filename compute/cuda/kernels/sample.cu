// Tokens from rows of logits: what sample_row does on the host, to the last bit but of the
// logarithm. One block takes one row and reads it from the cache several times: for the largest
// logit, the most probable tokens, the sums of weights, the lowest logits that top-k and top-p
// keep, and the token that is drawn. Weights are whole numbers, so that no order of adding them
// matters.

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"
#include "compute/sampling.hpp"
#include "compute/sampling_arithmetic.hpp"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 512;
constexpr int warps = threads / warp_lanes;
// The search for top-p takes as many bits of a key at once as a warp for each value adds up.
constexpr int digit_bits = 4;
constexpr int digits = 1 << digit_bits;
static_assert(digits == warps);

struct Shared {
  std::uint64_t sums[digits][threads];  // by digit of the key; each thread has its own column
  std::uint64_t partial[warps];
  std::uint64_t partial_equals[warps];
  float model_logit;  // of the token that was drawn
};

struct Larger {
  __device__ std::uint64_t operator()(std::uint64_t a, std::uint64_t b) const {
    return a < b ? b : a;
  }
};
struct Sum {
  __device__ std::uint64_t operator()(std::uint64_t a, std::uint64_t b) const { return a + b; }
};

template <class Combine>
__device__ std::uint64_t warp_combine(std::uint64_t x, Combine combine) {
#pragma unroll
  for (int lane = warp_lanes / 2; lane > 0; lane /= 2) {
    x = combine(x, __shfl_xor_sync(all_lanes, x, lane));
  }
  return x;
}

/// The same in all threads of the block. 0 changes nothing that is combined here.
template <class Combine>
__device__ std::uint64_t block_combine(std::uint64_t x, std::uint64_t* partial, Combine combine) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  x = warp_combine(x, combine);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  x = warp_combine(lane < warps ? partial[lane] : 0, combine);
  __syncthreads();  // `partial` may be written again
  return x;
}

/// Calls visit(logit, id) for this thread's logits of the row, N adjacent ones at a time.
template <int N, class Visit>
__device__ void for_row(const float* row, int vocab, Visit visit) {
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x) * N; i < vocab; i += threads * N) {
    float values[N];
    load_floats(row + i, values);
#pragma unroll
    for (int k = 0; k < N; ++k) visit(values[k], i + k);
  }
}

constexpr std::uint64_t not_finite = ~std::uint64_t{0};

/// The largest rank; `not_finite` where a logit is not.
template <int N>
__device__ std::uint64_t find_best(const float* row, int vocab, Shared& shared) {
  std::uint64_t best = 0;
  for_row<N>(row, vocab, [&](float logit, int id) {
    best = Larger()(best, is_finite(logit) ? rank_of(logit, id) : not_finite);
  });
  return block_combine(best, shared.partial, Larger());
}

/// The largest rank below another; 0 where there is none.
template <int N>
__device__ std::uint64_t find_next(const float* row, int vocab, std::uint64_t above,
                                   Shared& shared) {
  std::uint64_t best = 0;
  for_row<N>(row, vocab, [&](float logit, int id) {
    const std::uint64_t mine = rank_of(logit, id);
    if (mine < above) best = Larger()(best, mine);
  });
  return block_combine(best, shared.partial, Larger());
}

template <int N, class Weigh>
__device__ std::uint64_t sum_weights(const float* row, int vocab, const Weigh& weigh,
                                     Shared& shared) {
  std::uint64_t sum = 0;
  for_row<N>(row, vocab, [&](float logit, int) { sum += weigh(logit); });
  return block_combine(sum, shared.partial, Sum());
}

struct One {
  __device__ std::uint64_t operator()(float) const { return 1; }
};

/// The search of sample_row for what is kept, with shorter digits.
template <int N, class Weigh>
__device__ Kept keep(const float* row, int vocab, const Weigh& weigh, std::uint64_t wanted,
                     Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  std::uint64_t above = 0;
  std::uint64_t found = 0;  // the key's bits so far
  for (int shift = 32 - digit_bits; shift >= 0; shift -= digit_bits) {
    for (int digit = 0; digit < digits; ++digit) shared.sums[digit][threadIdx.x] = 0;
    for_row<N>(row, vocab, [&](float logit, int) {
      const std::uint64_t key = key_of(logit);
      if (key >> (shift + digit_bits) != found) return;
      shared.sums[(key >> shift) % digits][threadIdx.x] += weigh(logit);
    });
    __syncthreads();
    std::uint64_t sum = 0;
#pragma unroll
    for (int i = lane; i < threads; i += warp_lanes) sum += shared.sums[warp][i];
    sum = warp_combine(sum, Sum());
    if (lane == 0) shared.partial[warp] = sum;
    __syncthreads();
    int digit = digits - 1;
    while (digit > 0 && above + shared.partial[digit] < wanted) above += shared.partial[digit--];
    found = (found << digit_bits) | static_cast<unsigned>(digit);
  }
  __syncthreads();  // `partial` may be written again
  const auto key = static_cast<std::uint32_t>(found);
  return kept_of(key, above, weigh(logit_of(key)), wanted);
}

/// The top_k tokens, with what they weigh.
template <int N>
__device__ Kept keep_count(const float* row, int vocab, const Weights& weigh, int top_k,
                           Shared& shared) {
  Kept kept = keep<N>(row, vocab, One(), static_cast<std::uint64_t>(top_k), shared);
  std::uint64_t sum = 0;
  for_row<N>(row, vocab, [&](float logit, int) {
    if (key_of(logit) > kept.key) sum += weigh(logit);
  });
  kept.weight = block_combine(sum, shared.partial, Sum()) + kept.equals * weigh(logit_of(kept.key));
  return kept;
}

/// Sum of the same lane's and all lower lanes' values.
__device__ std::uint64_t sum_to_lane(std::uint64_t x, int lane) {
#pragma unroll
  for (int below = 1; below < warp_lanes; below *= 2) {
    const std::uint64_t other = __shfl_up_sync(all_lanes, x, below);
    if (lane >= below) x += other;
  }
  return x;
}

/// The id that holds unit `unit` of the kept weight, ids in rising order: the row is cut into a
/// part for each warp, the part that holds the unit again, until one id is left.
__device__ int draw_from(const float* row, int vocab, const Weights& weigh, const Kept& kept,
                         std::uint64_t unit, Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const std::uint64_t each = kept.equals > 0 ? weigh(logit_of(kept.key)) : 0;
  std::uint64_t equals = kept.equals;  // still to be kept from `begin` on
  int begin = 0;
  int end = vocab;
  while (end - begin > 1) {
    const int part = (end - begin + warps - 1) / warps;
    const int first = min(begin + warp * part, end);
    const int last = min(first + part, end);
    std::uint64_t sum = 0;
    std::uint64_t same = 0;
#pragma unroll 4
    for (int i = first + lane; i < last; i += warp_lanes) {
      const std::uint32_t key = key_of(row[i]);
      if (key > kept.key) sum += weigh(row[i]);
      if (key == kept.key) ++same;
    }
    sum = warp_combine(sum, Sum());
    same = warp_combine(same, Sum());
    if (lane == 0) {
      shared.partial[warp] = sum;
      shared.partial_equals[warp] = same;
    }
    __syncthreads();
    // Every warp finds the part by itself, a lane for each.
    same = lane < warps ? shared.partial_equals[lane] : 0;
    const std::uint64_t same_before = sum_to_lane(same, lane) - same;
    const std::uint64_t left = equals > same_before ? equals - same_before : 0;
    const std::uint64_t weight =
        (lane < warps ? shared.partial[lane] : 0) + (left < same ? left : same) * each;
    const std::uint64_t to_here = sum_to_lane(weight, lane);
    const int found = __ffs(static_cast<int>(__ballot_sync(all_lanes, to_here > unit ? 1 : 0))) - 1;
    unit -= __shfl_sync(all_lanes, to_here - weight, found);
    equals = __shfl_sync(all_lanes, left, found);
    begin += found * part;
    end = min(begin + part, end);
    __syncthreads();  // `partial` may be written again
  }
  return begin;
}

/// What sample_row takes: `best` is the largest rank of the row, `model` the sum of weights at
/// temperature 1 where the row is the model's, else 0.
template <int N>
__device__ int choose(const float* row, int vocab, const Draw& draw, std::uint64_t best,
                      std::uint64_t model, Shared& shared) {
  if (draw.target >= 0) return draw.target;
  if (draw.scale <= 0) return token_of_rank(best);
  const Weights weigh{logit_of_rank(best), draw.scale, draw.least_weight};
  Kept kept;
  if (draw.top_k > 0 && draw.top_k < vocab) {
    kept = keep_count<N>(row, vocab, weigh, draw.top_k, shared);
  } else {
    const bool summed = model > 0 && draw.scale == scale_of_one && draw.least_weight == 0;
    kept.weight = summed ? model : sum_weights<N>(row, vocab, weigh, shared);
  }
  if (draw.top_p < 1) {
    kept = keep<N>(row, vocab, weigh, wanted_weight(kept.weight, draw.top_p), shared);
  }
  return draw_from(row, vocab, weigh, kept, drawn_unit(kept.weight, draw.random), shared);
}

/// All threads of the block call these two; barriers make what they write known.
__device__ void change(float* row, LogitChange* changes, const Draw& draw) {
  for (int i = static_cast<int>(threadIdx.x); i < draw.num_changes; i += threads) {
    float& logit = row[changes[i].token];
    changes[i].model_logit = logit;
    logit = changed_logit(logit, changes[i], draw);
  }
  __syncthreads();
}
__device__ float model_logit(const float* row, const LogitChange* changes, const Draw& draw,
                             int token, Shared& shared) {
  if (threadIdx.x == 0) shared.model_logit = row[token];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < draw.num_changes; i += threads) {
    if (changes[i].token == token) shared.model_logit = changes[i].model_logit;
  }
  __syncthreads();
  return shared.model_logit;
}

template <int N>
__global__ void __launch_bounds__(threads)
    sample_kernel(float* logits, const Draw* draws, LogitChange* all_changes, SampledToken* all_out,
                  int vocab) {
  auto& shared = *dynamic_shared<Shared>();
  float* row = logits + std::int64_t{blockIdx.x} * vocab;
  const Draw draw = draws[blockIdx.x];
  LogitChange* changes = all_changes + draw.first_change;
  SampledToken* out = all_out + draw.first_outcome;
  const bool writes = threadIdx.x == 0;
  std::uint64_t best = find_best<N>(row, vocab, shared);
  if (best == not_finite) {
    for (int i = 0; writes && i <= draw.tops; ++i) out[i] = {-1, 0};
    return;
  }
  const float highest = logit_of_rank(best);
  const std::uint64_t model = sum_weights<N>(row, vocab, Weights{highest, scale_of_one, 0}, shared);
  constexpr double unit = 1.0 / (std::uint64_t{1} << weight_bits);
  const double log_sum = log(static_cast<double>(model) * unit);
  const auto outcome = [&](int token, float logit) {
    return SampledToken{token, static_cast<float>(static_cast<double>(logit) -
                                                  static_cast<double>(highest) - log_sum)};
  };
  std::uint64_t top = best;
  for (int i = 1; i <= draw.tops; ++i) {
    if (writes) {
      out[i] = top == 0 ? SampledToken{-1, 0} : outcome(token_of_rank(top), logit_of_rank(top));
    }
    if (i < draw.tops) top = find_next<N>(row, vocab, top, shared);
  }
  const bool changed = draw.num_changes > 0;
  if (changed) {
    change(row, changes, draw);
    best = find_best<N>(row, vocab, shared);
  }
  const int token = choose<N>(row, vocab, draw, best, changed ? 0 : model, shared);
  const float logit = changed ? model_logit(row, changes, draw, token, shared) : row[token];
  if (writes) out[0] = outcome(token, logit);
}

}  // namespace

void sample(cudaStream_t stream, float* logits, const Draw* draws, LogitChange* changes,
            SampledToken* out, int num_rows, int vocab) {
  const bool aligned = rows_are_aligned(static_cast<std::size_t>(vocab) * sizeof(float), logits);
  launch(stream, "sample", aligned ? &sample_kernel<4> : &sample_kernel<1>,
         dim3(static_cast<unsigned>(num_rows)), threads, sizeof(Shared), logits, draws, changes,
         out, vocab);
}

}  // namespace atl::compute::cuda
