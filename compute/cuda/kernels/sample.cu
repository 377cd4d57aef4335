// Tokens from rows of logits: what sample_row does on the host, to the last bit but of the
// logarithm. One block takes one row and reads it from the cache several times: for the largest
// logit, the sums of weights, the lowest logit that top-p keeps, and the token that is drawn.
// Weights are whole numbers, so that no order of adding them matters.

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

/// Key and id of the largest logit, ties to the lower id: the key in the upper half, the inverted
/// id in the lower one. `not_finite` where a logit is not.
template <int N>
__device__ std::uint64_t find_best(const float* row, int vocab, Shared& shared) {
  std::uint64_t best = 0;
  for_row<N>(row, vocab, [&](float logit, int id) {
    const std::uint64_t mine = (std::uint64_t{key_of(logit)} << 32U) | ~static_cast<unsigned>(id);
    best = Larger()(best, is_finite(logit) ? mine : not_finite);
  });
  return block_combine(best, shared.partial, Larger());
}

template <int N>
__device__ std::uint64_t sum_weights(const float* row, int vocab, float best, double scale,
                                     Shared& shared) {
  std::uint64_t sum = 0;
  for_row<N>(row, vocab, [&](float logit, int) { sum += weight_of(logit, best, scale); });
  return block_combine(sum, shared.partial, Sum());
}

/// The search of sample_row for what top-p keeps, with shorter digits.
template <int N>
__device__ Kept keep(const float* row, int vocab, float best, double scale, std::uint64_t wanted,
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
      shared.sums[(key >> shift) % digits][threadIdx.x] += weight_of(logit, best, scale);
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
  return kept_of(key, above, weight_of(logit_of(key), best, scale), wanted);
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
__device__ int draw_from(const float* row, int vocab, float best, double scale, const Kept& kept,
                         std::uint64_t unit, Shared& shared) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const std::uint64_t each = kept.equals > 0 ? weight_of(logit_of(kept.key), best, scale) : 0;
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
      if (key > kept.key) sum += weight_of(row[i], best, scale);
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

template <int N>
__global__ void __launch_bounds__(threads)
    sample_kernel(const float* logits, const Draw* draws, SampledToken* out, int vocab) {
  auto& shared = *dynamic_shared<Shared>();
  const float* row = logits + std::int64_t{blockIdx.x} * vocab;
  const Draw draw = draws[blockIdx.x];
  const std::uint64_t top = find_best<N>(row, vocab, shared);
  if (top == not_finite) {
    if (threadIdx.x == 0) out[blockIdx.x] = {-1, 0};
    return;
  }
  const float best = logit_of(static_cast<std::uint32_t>(top >> 32U));
  const std::uint64_t model = sum_weights<N>(row, vocab, best, scale_of_one, shared);
  auto token = static_cast<int>(~static_cast<std::uint32_t>(top));
  if (draw.target >= 0) {
    token = draw.target;
  } else if (draw.scale > 0) {
    Kept kept;
    kept.weight =
        draw.scale == scale_of_one ? model : sum_weights<N>(row, vocab, best, draw.scale, shared);
    if (draw.top_p < 1) {
      const std::uint64_t wanted = wanted_weight(kept.weight, draw.top_p);
      kept = keep<N>(row, vocab, best, draw.scale, wanted, shared);
    }
    const std::uint64_t unit = drawn_unit(kept.weight, draw.random);
    token = draw_from(row, vocab, best, draw.scale, kept, unit, shared);
  }
  if (threadIdx.x == 0) {
    constexpr double unit = 1.0 / (std::uint64_t{1} << weight_bits);
    const double sum = static_cast<double>(model) * unit;
    out[blockIdx.x] = {token, static_cast<float>(static_cast<double>(row[token]) -
                                                 static_cast<double>(best) - log(sum))};
  }
}

}  // namespace

void sample(cudaStream_t stream, const float* logits, const Draw* draws, SampledToken* out,
            int num_rows, int vocab) {
  const bool aligned = rows_are_aligned(static_cast<std::size_t>(vocab) * sizeof(float), logits);
  launch(stream, "sample", aligned ? &sample_kernel<4> : &sample_kernel<1>,
         dim3(static_cast<unsigned>(num_rows)), threads, sizeof(Shared), logits, draws, out, vocab);
}

}  // namespace atl::compute::cuda
