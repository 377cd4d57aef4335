#pragma once
// RMSNorm of the residual stream alone, after adding to it, and after merging the experts' rows
// into it: one block per row.

#include <type_traits>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

/// How many times N elements a thread keeps in registers between the sum and the scaling. Wider
/// rows are read again, from the cache.
inline constexpr int kept = 2;
inline constexpr int max_norm_threads = 512;

/// What a row is made of before it is normalised.
enum class Source : std::uint8_t { plain, sum, experts };

struct NormArgs {
  const float* x = nullptr;  ///< also written, unless plain
  const std::int32_t* rows = nullptr;
  const void* added = nullptr;  ///< y, or the experts' rows
  const std::int32_t* slots = nullptr;
  const float* weights = nullptr;
  int top_k = 0;
  bool from_nodes = false;  ///< see MergeArgs
  const float* norm = nullptr;
  float eps = 0;
  void* out = nullptr;
  int hidden = 0;
};

/// N columns of sum_j weights[j] * rows[slots[j]], j in rising order; `rows` from that column on.
template <class T, int N>
__device__ void sum_rows(const T* rows, int hidden, const std::int32_t* slots, const float* weights,
                         int top_k, float (&total)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) total[i] = 0;
#pragma unroll 4
  for (int j = 0; j < top_k; ++j) {
    float values[N];
    to_floats(load_raw<N>(rows + std::int64_t{slots[j]} * hidden), values);
    const float weight = weights[j];
#pragma unroll
    for (int i = 0; i < N; ++i) total[i] = fmaf(weight, values[i], total[i]);
  }
}

/// The weighted sum of the experts' rows, rounded as it is where a node has added them up.
template <class T, int N>
__device__ void sum_experts(const NormArgs& args, std::int64_t row, int column, float (&total)[N]) {
  const T* rows = static_cast<const T*>(args.added) + column;
  const std::int32_t* slots = args.slots + row * args.top_k;
  if (args.from_nodes && (args.top_k == 1 || slots[1] < 0)) {
    to_floats(load_raw<N>(rows + std::int64_t{slots[0]} * args.hidden), total);
    return;
  }
  sum_rows(rows, args.hidden, slots, args.weights + row * args.top_k, args.top_k, total);
#pragma unroll
  for (int i = 0; i < N; ++i) total[i] = to_float(round_to<T>(total[i]));
}

/// N elements of the row: x itself, or x with its addend, which is stored.
template <Source source, class T, int N>
__device__ void read(const NormArgs& args, float* x, std::int64_t row, int column,
                     float (&values)[N]) {
  load_floats(x + column, values);
  if constexpr (source != Source::plain) {
    float added[N];
    if constexpr (source == Source::sum) {
      to_floats(load_raw<N>(static_cast<const T*>(args.added) + row * args.hidden + column), added);
    } else {
      sum_experts<T>(args, row, column, added);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] += added[i];
    store_floats(x + column, values);
  }
}

template <int N>
__device__ float squares(const float (&values)[N], float total) {
#pragma unroll
  for (int i = 0; i < N; ++i) total = fmaf(values[i], values[i], total);
  return total;
}

template <class T, int N>
__device__ void write(const NormArgs& args, const float (&values)[N], float scale, T* out,
                      int column) {
  float normed[N];
  float weights[N];
  load_floats(args.norm + column, weights);
#pragma unroll
  for (int i = 0; i < N; ++i) normed[i] = values[i] * scale * weights[i];
  store_raw(out + column, to_raw<T>(normed));
}

template <Source source, class T, int N>
__global__ void __launch_bounds__(max_norm_threads) norm_kernel(NormArgs args) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t from = args.rows == nullptr ? row : args.rows[row];
  float* x = const_cast<float*>(args.x) + from * args.hidden;
  const int step = static_cast<int>(blockDim.x) * N;
  const int first = static_cast<int>(threadIdx.x) * N;
  float values[kept][N];
#pragma unroll
  for (int i = 0; i < kept; ++i) {
    if (first + i * step < args.hidden) {
      read<source, T>(args, x, row, first + i * step, values[i]);
    }
  }
  float total = 0;
#pragma unroll
  for (int i = 0; i < kept; ++i) {
    if (first + i * step < args.hidden) total = squares(values[i], total);
  }
  for (int column = first + kept * step; column < args.hidden; column += step) {
    float more[N];
    read<source, T>(args, x, row, column, more);
    total = squares(more, total);
  }
  if (args.norm == nullptr) return;
  total = block_sum(total, dynamic_shared<float>());
  const float scale = inverse_rms(total, args.hidden, args.eps);
  T* out = static_cast<T*>(args.out) + row * args.hidden;
#pragma unroll
  for (int i = 0; i < kept; ++i) {
    if (first + i * step < args.hidden) write(args, values[i], scale, out, first + i * step);
  }
  for (int column = first + kept * step; column < args.hidden; column += step) {
    float more[N];
    load_floats(x + column, more);
    write(args, more, scale, out, column);
  }
}

template <Source source>
void launch_norm(cudaStream_t stream, std::string_view name, DType dtype, const NormArgs& args,
                 int num_rows) {
  const auto run = [&](auto kernel, int width) {
    const int threads = threads_for(args.hidden / width, kept, max_norm_threads);
    launch(stream, name, kernel, dim3(static_cast<unsigned>(num_rows)),
           static_cast<unsigned>(threads), warp_lanes * sizeof(float), args);
  };
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    if (rows_are_aligned(static_cast<std::size_t>(args.hidden) * sizeof(T), args.x, args.added,
                         args.norm, args.out)) {
      run(&norm_kernel<source, T, wide<T>>, wide<T>);
    } else {
      run(&norm_kernel<source, T, 1>, 1);
    }
  });
}

}  // namespace atl::compute::cuda
