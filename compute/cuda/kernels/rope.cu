// Normalises and rotates q and k, and appends k and v to their pages: one block per row.

#include <algorithm>
#include <type_traits>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 256;

/// How the heads of a row lie on the threads: `lanes` (a power of two) neighbours share a head, and
/// `heads_at_once` heads are under way in a block.
struct HeadLanes {
  int lanes = 0;
  int heads_at_once = 0;
};

/// Sum over each group of `lanes` neighbours; all groups together.
__device__ inline float group_sum(float x, int lanes) {
  for (int lane = lanes / 2; lane > 0; lane /= 2) x += __shfl_xor_sync(all_lanes, x, lane);
  return x;
}

template <int N, class T>
__device__ float sum_of_squares(const T* from, int begin, int end, int step) {
  float total = 0;
  for (int i = begin; i < end; i += step) {
    float values[N];
    to_floats(load_raw<N>(from + i), values);
#pragma unroll
    for (int k = 0; k < N; ++k) total = fmaf(values[k], values[k], total);
  }
  return total;
}

/// What a head is multiplied by: `scale` and a weight where that is not null, before or after it is
/// rotated, and `factor` in the end.
struct HeadScale {
  float scale;
  const float* weight;
  bool after;
  float factor;
};

template <int N>
__device__ void multiply(float (&values)[N], const HeadScale& by, int i) {
  float weights[N];
  load_floats(by.weight + i, weights);
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] = values[k] * by.scale * weights[k];
}

/// out = round(rotate(in * scale * weight)) for the elements i.. of both halves of what turns.
template <int N, class T>
__device__ void rotate(const T* in, const HeadScale& by, const float* angles, int half, int i,
                       T* out) {
  float a[N];
  float b[N];
  float cosine[N];
  float sine[N];
  to_floats(load_raw<N>(in + i), a);
  to_floats(load_raw<N>(in + half + i), b);
  load_floats(angles + i, cosine);
  load_floats(angles + half + i, sine);
  if (by.weight != nullptr && !by.after) {
    multiply(a, by, i);
    multiply(b, by, half + i);
  }
  float first[N];
  float second[N];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    first[k] = fmaf(a[k], cosine[k], -(b[k] * sine[k]));
    second[k] = fmaf(b[k], cosine[k], a[k] * sine[k]);
  }
  if (by.weight != nullptr && by.after) {
    multiply(first, by, i);
    multiply(second, by, half + i);
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    first[k] *= by.factor;
    second[k] *= by.factor;
  }
  store_raw(out + i, to_raw<T>(first));
  store_raw(out + half + i, to_raw<T>(second));
}

/// The elements i.. that do not turn.
template <int N, class T>
__device__ void keep(const T* in, const HeadScale& by, int i, T* out) {
  float values[N];
  to_floats(load_raw<N>(in + i), values);
  if (by.weight != nullptr) multiply(values, by, i);
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] *= by.factor;
  store_raw(out + i, to_raw<T>(values));
}

/// A lane's elements of a value of `width`.
template <int N, class T>
__device__ void store_value(const T* in, int width, float factor, int begin, int step, T* out) {
  for (int i = begin; i < width; i += step) {
    const Raw<T, N> raw = load_raw<N>(in + i);
    if (factor == 1) {
      store_raw(out + i, raw);
      continue;
    }
    float values[N];
    to_floats(raw, values);
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] *= factor;
    store_raw(out + i, to_raw<T>(values));
  }
}

/// One head of q, k or v: where it comes from and where its result goes.
template <class T>
struct Head {
  const T* in;
  T* out;
  const float* weight;
  bool is_value;
};

template <class T>
__device__ Head<T> head_of(const RopeArgs& args, T* row, std::int64_t page, int token, int index) {
  const int d = args.kv.head_dim;
  T* in = row + std::int64_t{index} * d;
  if (index < args.num_heads) {
    const float* weight = args.q_norm;
    if (args.norm == QkNorm::whole_row) weight += index * d;
    return {in, in, args.norm == QkNorm::none ? nullptr : weight, false};
  }
  const bool is_value = index >= args.num_heads + args.kv.num_kv_heads;
  const int head = index - args.num_heads - (is_value ? args.kv.num_kv_heads : 0);
  const std::int64_t at = (page * args.kv.num_kv_heads + head) * args.kv.page_tokens + token;
  if (is_value) {
    const int v = args.kv.values_dim();
    return {row + std::int64_t{args.num_heads + args.kv.num_kv_heads} * d + head * v,
            static_cast<T*>(args.kv.values) + at * v, nullptr, true};
  }
  const float* weight = args.k_norm;
  if (args.norm == QkNorm::whole_row) weight += head * d;
  return {in, static_cast<T*>(args.kv.keys) + at * d, args.norm == QkNorm::none ? nullptr : weight,
          false};
}

/// out[h] = the sum of squares of head h. Called by the whole block.
template <int N, class T>
__device__ void sum_heads(const T* row, int num_heads, int head_dim, const HeadLanes& layout,
                          float* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % layout.lanes;
  for (int first = 0; first < num_heads; first += layout.heads_at_once) {
    const int head = first + thread / layout.lanes;
    const bool live = head < num_heads;  // the others still take part in sums
    const float own = live ? sum_of_squares<N>(row + std::int64_t{head} * head_dim, lane * N,
                                               head_dim, layout.lanes * N)
                           : 0.0F;
    const float sum = group_sum(own, layout.lanes);
    if (live && lane == 0) out[head] = sum;
  }
}

/// What a whole_row norm multiplies by: sums of heads, of this row and of the first member, are
/// added in the order of the heads, whoever has them.
__device__ inline void scale_whole_row(const RopeArgs& args, const float* sums, float& q_scale,
                                       float& k_scale) {
  const HeadSums& squares = args.squares;
  const std::int64_t stride = squares.num_rows * squares.per_member;
  float q = 0;
  for (int member = 0; member < squares.members; ++member) {
    for (int head = 0; head < args.num_heads; ++head) q += sums[member * stride + head];
  }
  const int kv_heads = squares.sums == nullptr ? args.kv.num_kv_heads : squares.num_kv_heads;
  float k = 0;
  for (int kv_head = 0; kv_head < kv_heads; ++kv_head) {
    // Of the members that keep it the first, whose own first one is its first query head's.
    const int member = kv_head * args.groups.group / args.num_heads;
    const int own = kv_head - member * args.num_heads / args.groups.group;
    k += sums[member * stride + args.num_heads + own];
  }
  const int d = args.kv.head_dim;
  q_scale = inverse_rms(q, squares.members * args.num_heads * d, args.eps);
  k_scale = inverse_rms(k, kv_heads * d, args.eps);
}

__device__ inline std::int64_t row_elements(const RopeArgs& args) {
  return std::int64_t{args.num_heads + args.kv.num_kv_heads} * args.kv.head_dim +
         args.kv.num_kv_heads * args.kv.values_dim();
}

template <class T, int N>
__global__ void __launch_bounds__(threads)
    squares_kernel(RopeArgs args, HeadLanes layout, float* out) {
  const std::int64_t r = blockIdx.x;
  const int d = args.kv.head_dim;
  const int heads = args.num_heads + args.kv.num_kv_heads;
  const T* row = static_cast<const T*>(args.qkv) + r * row_elements(args);
  sum_heads<N>(row, heads, d, layout, out + r * args.squares.per_member);
}

template <class T, int N>
__global__ void __launch_bounds__(threads) rope_kernel(RopeArgs args, HeadLanes layout) {
  const std::int64_t r = blockIdx.x;
  const int d = args.kv.head_dim;
  const int half = args.dims / 2;
  T* row = static_cast<T*>(args.qkv) + r * row_elements(args);
  const int position = args.map.position[r];
  const std::int64_t page = args.map.pages[std::int64_t{args.map.sequence[r]} * args.map.max_pages +
                                           position / args.kv.page_tokens];
  const int token = position % args.kv.page_tokens;
  const float* angles = args.angles + std::int64_t{position} * args.dims;
  const int thread = static_cast<int>(threadIdx.x);
  float q_scale = 1;
  float k_scale = 1;
  if (args.norm == QkNorm::whole_row) {
    const HeadSums& squares = args.squares;
    const float* sums = squares.sums + r * squares.per_member;
    if (squares.sums == nullptr) {
      float* own = dynamic_shared<float>();
      sum_heads<N>(row, args.num_heads + args.kv.num_kv_heads, d, layout, own);
      __syncthreads();  // and all have read q before anybody overwrites it
      sums = own;
    }
    scale_whole_row(args, sums, q_scale, k_scale);
  }
  const int num_heads = args.num_heads + 2 * args.kv.num_kv_heads;
  const int begin = thread % layout.lanes * N;
  const int step = layout.lanes * N;
  for (int first = 0; first < num_heads; first += layout.heads_at_once) {
    const int index = first + thread / layout.lanes;
    const bool live = index < num_heads;  // the others still take part in sums
    const Head<T> head = head_of(args, row, page, token, live ? index : 0);
    float scale = index < args.num_heads ? q_scale : k_scale;
    if (args.norm == QkNorm::per_head) {
      const float squares =
          live && !head.is_value ? sum_of_squares<N>(head.in, begin, d, step) : 0.0F;
      scale = inverse_rms(group_sum(squares, layout.lanes), d, args.eps);
    }
    if (!live) continue;
    if (head.is_value) {
      store_value<N>(head.in, args.kv.values_dim(), args.value_factor, begin, step, head.out);
      continue;
    }
    const HeadScale by{scale, head.weight, args.norm_after,
                       index < args.num_heads ? args.q_factor : 1.0F};
    for (int i = begin; i < half; i += step) rotate<N>(head.in, by, angles, half, i, head.out);
    for (int i = 2 * half + begin; i < d; i += step) keep<N>(head.in, by, i, head.out);
  }
}

HeadLanes lanes_of(int head_dim, int width) {
  HeadLanes layout;
  layout.lanes = 1;
  while (layout.lanes < warp_lanes && layout.lanes * width < head_dim / 2) layout.lanes *= 2;
  layout.heads_at_once = threads / layout.lanes;
  return layout;
}

/// Calls action(T{}, N) with how many elements of type T every access may take.
template <class Action>
void with_width(DType dtype, const RopeArgs& args, const Action& action) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const std::size_t half_bytes = static_cast<std::size_t>(args.dims / 2) * sizeof(T);
    const auto is_whole = [](int width) {
      return static_cast<std::size_t>(width) * sizeof(T) % access_bytes == 0;
    };
    const bool whole = is_whole(args.kv.head_dim) && is_whole(args.kv.values_dim());
    if (whole && rows_are_aligned(half_bytes, args.qkv, args.kv.keys, args.kv.values, args.q_norm,
                                  args.k_norm, args.angles)) {
      action(element, std::integral_constant<int, wide<T>>());
    } else {
      action(element, std::integral_constant<int, 1>());
    }
  });
}

}  // namespace

void rope_and_store(cudaStream_t stream, DType dtype, const RopeArgs& args) {
  with_width(dtype, args, [&](auto element, auto width) {
    using T = typename decltype(element)::type;
    const auto sums = static_cast<std::size_t>(args.num_heads + args.kv.num_kv_heads);
    launch(stream, "rope_and_store", &rope_kernel<T, decltype(width)::value>,
           dim3(static_cast<unsigned>(args.num_rows)), threads, sums * sizeof(float), args,
           lanes_of(args.kv.head_dim, width));
  });
}

void head_squares(cudaStream_t stream, DType dtype, const RopeArgs& args, float* out) {
  with_width(dtype, args, [&](auto element, auto width) {
    using T = typename decltype(element)::type;
    launch(stream, "head_squares", &squares_kernel<T, decltype(width)::value>,
           dim3(static_cast<unsigned>(args.num_rows)), threads, 0, args,
           lanes_of(args.kv.head_dim, width), out);
  });
}

}  // namespace atl::compute::cuda
