// Latent attention around the kernels of attention: latents normalised, rotated and stored,
// expanded to keys and values, and queries and results taken to them and back.

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 256;
/// Rows that one block multiplies by a piece of a matrix.
constexpr int rows_at_once = 8;
/// Shared memory of row_squares().
constexpr std::size_t sum_bytes = threads / warp_lanes * sizeof(float);

/// The sum of squares of a row, the same in all threads of the block.
template <class T>
__device__ float row_squares(const T* row, int width) {
  float own = 0;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {
    own = fmaf(to_float(row[i]), to_float(row[i]), own);
  }
  return block_sum(own, dynamic_shared<float>());
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(threads) norm_kernel(NormLatentsArgs args) {
  const std::int64_t r = blockIdx.x;
  const T* in = static_cast<const T*>(args.in) + r * (args.width + args.kept);
  const float scale = inverse_rms(row_squares(in, args.width), args.width, args.eps);
  T* out = static_cast<T*>(args.out) + r * args.width;
  for (int i = static_cast<int>(threadIdx.x); i < args.width; i += threads) {
    out[i] = round_to<T>(to_float(in[i]) * scale * args.weight[i]);
  }
  T* kept = static_cast<T*>(args.kept_out) + r * args.kept;
  for (int i = static_cast<int>(threadIdx.x); i < args.kept; i += threads) {
    kept[i] = in[args.width + i];
  }
}

/// Element i of `dims` that turn in halves.
template <class T>
__device__ float turned(const T* in, const float* angles, int dims, int i) {
  const int half = dims / 2;
  const int pair = i % half;
  const float a = to_float(in[pair]);
  const float b = to_float(in[pair + half]);
  const float cosine = angles[pair];
  const float sine = angles[half + pair];
  return i < half ? fmaf(a, cosine, -(b * sine)) : fmaf(b, cosine, a * sine);
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(threads) rope_kernel(LatentRopeArgs args) {
  const std::int64_t r = blockIdx.x;
  const int position = args.map.position[r];
  const int thread = static_cast<int>(threadIdx.x);
  const float* angles = args.angles + std::int64_t{position} * args.dims;
  const int half = args.dims / 2;
  float factor = 1;
  if (args.temperature.beta > 0) {
    const auto passed = static_cast<float>(position / args.temperature.interval);
    factor = 1.0F + args.temperature.beta * logf(1.0F + passed);
  }
  T* q = static_cast<T*>(args.q) + r * args.q_stride;
  const int still = args.head_dim - args.dims;
  for (int i = thread; i < args.num_heads * half; i += threads) {
    T* head = q + i / half * args.head_dim + still;
    const int pair = i % half;
    const float first = turned(head, angles, args.dims, pair);
    const float second = turned(head, angles, args.dims, pair + half);
    head[pair] = round_to<T>(first * factor);
    head[pair + half] = round_to<T>(second * factor);
  }
  for (int i = thread; factor != 1 && i < args.num_heads * still; i += threads) {
    T* at = q + i / still * args.head_dim + i % still;
    *at = round_to<T>(to_float(*at) * factor);
  }
  const T* latent = static_cast<const T*>(args.latents) + r * args.latent_stride;
  const std::int64_t page = args.map.pages[std::int64_t{args.map.sequence[r]} * args.map.max_pages +
                                           position / args.kv.page_tokens];
  const std::int64_t token = page * args.kv.page_tokens + position % args.kv.page_tokens;
  T* to = static_cast<T*>(args.kv.keys) + token * args.kv.head_dim;
  const int width = args.kv.head_dim - args.dims;
  const float scale = inverse_rms(row_squares(latent, width), width, args.eps);
  for (int i = thread; i < width; i += threads) {
    to[i] = round_to<T>(to_float(latent[i]) * scale * args.norm[i]);
  }
  for (int i = thread; i < args.dims; i += threads) {
    to[width + i] = round_to<T>(turned(latent + width, angles, args.dims, i));
  }
}

/// One block per head and some rows; a thread has a column of the latents.
template <class T>
__global__ void __launch_bounds__(threads) absorb_kernel(AbsorbArgs args) {
  float* in = dynamic_shared<float>();  // [rows_at_once, still]
  const int head = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.x) * rows_at_once;
  const int count = min(rows_at_once, args.num_rows - first);
  const int thread = static_cast<int>(threadIdx.x);
  const int still = args.head_dim - args.rope;
  const int width = args.latent + args.rope;
  const auto query = [&](int i) {
    const std::int64_t row = args.rows == nullptr ? first + i : args.rows[first + i];
    return static_cast<const T*>(args.q) + row * args.q_stride + head * args.head_dim;
  };
  const auto out = [&](int i) {
    return static_cast<T*>(args.out) + (std::int64_t{first + i} * args.num_heads + head) * width;
  };
  for (int i = thread; i < rows_at_once * still; i += threads) {
    in[i] = i / still < count ? to_float(query(i / still)[i % still]) : 0.0F;
  }
  for (int i = thread; i < count * args.rope; i += threads) {
    out(i / args.rope)[args.latent + i % args.rope] = query(i / args.rope)[still + i % args.rope];
  }
  __syncthreads();
  const T* weight = static_cast<const T*>(args.k_up) + std::int64_t{head} * still * args.latent;
  for (int column = thread; column < args.latent; column += threads) {
    float sums[rows_at_once] = {};
    for (int k = 0; k < still; ++k) {
      const float w = to_float(weight[std::int64_t{k} * args.latent + column]);
#pragma unroll
      for (int i = 0; i < rows_at_once; ++i) sums[i] = fmaf(in[i * still + k], w, sums[i]);
    }
    for (int i = 0; i < count; ++i) out(i)[column] = round_to<T>(sums[i]);
  }
}

/// One block per head and some rows; a warp has a row of the matrix.
template <class T>
__global__ void __launch_bounds__(threads) project_kernel(ProjectLatentsArgs args) {
  const int head = static_cast<int>(blockIdx.y);
  const int first = static_cast<int>(blockIdx.x) * rows_at_once;
  const int count = min(rows_at_once, args.num_rows - first);
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const T* in =
      static_cast<const T*>(args.in) + (std::int64_t{first} * args.num_heads + head) * args.latent;
  const std::int64_t in_stride = std::int64_t{args.num_heads} * args.latent;
  for (int row = static_cast<int>(threadIdx.x) / warp_lanes; row < args.value_dim;
       row += threads / warp_lanes) {
    const T* weight = static_cast<const T*>(args.v_up) +
                      (std::int64_t{head} * args.value_dim + row) * args.latent;
    float sums[rows_at_once] = {};
    for (int k = lane; k < args.latent; k += warp_lanes) {
      const float w = to_float(weight[k]);
#pragma unroll
      for (int i = 0; i < rows_at_once; ++i) {
        if (i < count) sums[i] = fmaf(to_float(in[i * in_stride + k]), w, sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < rows_at_once; ++i) {
      const float sum = warp_sum(sums[i]);
      if (lane != 0 || i >= count) continue;
      T* out = static_cast<T*>(args.out) + args.rows[first + i] * args.out_stride;
      out[head * args.value_dim + row] = round_to<T>(sum);
    }
  }
}

/// The row that a page has of a position.
template <class T>
__device__ const T* latent_at(const KvPages& kv, const std::int32_t* pages, int position) {
  const std::int64_t page = pages[position / kv.page_tokens];
  return static_cast<const T*>(kv.keys) +
         (page * kv.page_tokens + position % kv.page_tokens) * kv.head_dim;
}

/// One block per position.
template <class T>
__global__ void __launch_bounds__(threads)
    gather_kernel(KvPages kv, const std::int32_t* pages, int first, T* out) {
  const T* from = latent_at<T>(kv, pages, first + static_cast<int>(blockIdx.x));
  T* to = out + std::int64_t{blockIdx.x} * kv.value_dim;
  for (int i = static_cast<int>(threadIdx.x); i < kv.value_dim; i += threads) to[i] = from[i];
}

/// One block per position.
template <class T>
__global__ void __launch_bounds__(threads)
    expand_kernel(KvPages latents, const std::int32_t* pages, int first, const T* k_rows,
                  const T* v_rows, KvPages to) {
  const int position = first + static_cast<int>(blockIdx.x);
  const int rope = latents.head_dim - latents.value_dim;
  const int still = to.head_dim - rope;
  const T* key = latent_at<T>(latents, pages, position) + latents.value_dim;
  const T* k = k_rows + std::int64_t{blockIdx.x} * to.num_kv_heads * still;
  const T* v = v_rows + std::int64_t{blockIdx.x} * to.num_kv_heads * to.values_dim();
  const auto token = [&](int head) { return std::int64_t{head} * to.page_tokens + position; };
  for (int i = static_cast<int>(threadIdx.x); i < to.num_kv_heads * to.head_dim; i += threads) {
    const int head = i / to.head_dim;
    const int c = i % to.head_dim;
    static_cast<T*>(to.keys)[token(head) * to.head_dim + c] =
        c < still ? k[head * still + c] : key[c - still];
  }
  for (int i = static_cast<int>(threadIdx.x); i < to.num_kv_heads * to.values_dim(); i += threads) {
    const int head = i / to.values_dim();
    static_cast<T*>(to.values)[token(head) * to.values_dim() + i % to.values_dim()] = v[i];
  }
}

dim3 rows_of(int count) {
  return dim3(static_cast<unsigned>(count));
}
dim3 rows_and_heads(int rows, int heads) {
  return dim3(static_cast<unsigned>(divide_up(rows, rows_at_once)), static_cast<unsigned>(heads));
}

}  // namespace

void norm_latents(cudaStream_t stream, DType dtype, const NormLatentsArgs& args) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "norm_latents", &norm_kernel<T>, rows_of(args.num_rows), threads, sum_bytes,
           args);
  });
}

void latent_rope(cudaStream_t stream, DType dtype, const LatentRopeArgs& args) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "latent_rope", &rope_kernel<T>, rows_of(args.num_rows), threads, sum_bytes,
           args);
  });
}

void absorb_queries(cudaStream_t stream, DType dtype, const AbsorbArgs& args) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const auto in = static_cast<std::size_t>(rows_at_once * (args.head_dim - args.rope));
    launch(stream, "absorb_queries", &absorb_kernel<T>,
           rows_and_heads(args.num_rows, args.num_heads), threads, in * sizeof(float), args);
  });
}

void project_latents(cudaStream_t stream, DType dtype, const ProjectLatentsArgs& args) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "project_latents", &project_kernel<T>,
           rows_and_heads(args.num_rows, args.num_heads), threads, 0, args);
  });
}

void gather_latents(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
                    int first, int count, void* out) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "gather_latents", &gather_kernel<T>, rows_of(count), threads, 0, kv, pages,
           first, static_cast<T*>(out));
  });
}

void store_expanded(cudaStream_t stream, DType dtype, const KvPages& latents,
                    const std::int32_t* pages, int first, int count, const void* k_rows,
                    const void* v_rows, const KvPages& to) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "store_expanded", &expand_kernel<T>, rows_of(count), threads, 0, latents, pages,
           first, static_cast<const T*>(k_rows), static_cast<const T*>(v_rows), to);
  });
}

}  // namespace atl::compute::cuda
