// Attention by element type, the merging of splits, and the plain kernel for checking in float32.

#include "compute/cuda/kernels/attention.cuh"
#include "compute/cuda/wgmma.hpp"

namespace atl::compute::cuda {

extern template void attention_tiles<__nv_bfloat16>(cudaStream_t, const AttentionArgs&);
extern template void attention_tiles<__half>(cudaStream_t, const AttentionArgs&);
extern template void attention_group_tiles<__nv_bfloat16>(cudaStream_t, const AttentionArgs&);
extern template void attention_group_tiles<__half>(cudaStream_t, const AttentionArgs&);

namespace {

constexpr int threads = 128;
/// Columns of a row that one thread looks after.
constexpr int held = max_head_dim / threads;

/// Merges the splits of one row and head in order, as a tile does that computes all of them.
template <class T>
__global__ void __launch_bounds__(threads) merge_kernel(AttentionArgs args, int head_floats) {
  const AttentionMerge merge = args.merges[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y);
  const int d = args.kv.values_dim();
  const float scale = score_scale(args);
  const int first = static_cast<int>(threadIdx.x);
  float totals[held] = {};
  float top = 0;
  float sum = 0;
  for (int i = 0; i < merge.num_partials; ++i) {
    const std::int64_t row = merge.first_partial + std::int64_t{i} * merge.stride;
    const float* partial = args.workspace + (row * args.num_heads + head) * head_floats;
    const float split_top = partial[head_floats - 4];
    const float split_sum = partial[head_floats - 3];
    MergeFactors factors{split_top, 0.0F, 1.0F};
    if (i > 0) factors = merge_factors(top, split_top, scale);
    top = factors.top;
    sum = i == 0 ? split_sum : merged(sum, split_sum, factors);
#pragma unroll
    for (int k = 0; k < held; ++k) {
      const int column = first + k * threads;
      if (column < d) {
        totals[k] = i == 0 ? partial[column] : merged(totals[k], partial[column], factors);
      }
    }
  }
  const float inverse =
      inverse_sum(top, sum, scale, args.sinks == nullptr ? nullptr : args.sinks + head);
  T* out = static_cast<T*>(args.out) + merge.row * args.out_row() + head * d;
#pragma unroll
  for (int k = 0; k < held; ++k) {
    const int column = first + k * threads;
    if (column < d) out[column] = round_to<T>(totals[k] * inverse + 0.0F);
  }
}

/// One row and head per block, a block of keys at a time: slow, and easily seen to be right.
__global__ void __launch_bounds__(threads) plain_kernel(AttentionArgs args) {
  float* query = dynamic_shared<float>();   // [latent_head_dim]
  float* scores = query + latent_head_dim;  // [key_block]
  const std::int64_t row = blockIdx.x;
  const int head = static_cast<int>(blockIdx.y);
  const KvPages& kv = args.kv;
  const int d = kv.head_dim;
  const int kv_head = args.groups.kv_head_of(head);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warp_lanes;
  const std::int32_t* pages =
      args.map.pages + std::int64_t{args.map.sequence[row]} * args.map.max_pages;
  const int num_keys = args.map.position[row] + 1;
  const int low = args.window > 0 ? max(num_keys - args.window, 0) : 0;
  const int v = kv.values_dim();
  const float scale = args.scale > 0 ? args.scale : 1.0F / sqrtf(static_cast<float>(d));
  const float* q = static_cast<const float*>(args.qkv) + row * args.qkv_stride + head * d;
  for (int i = thread; i < d; i += threads) query[i] = q[i];
  float out[held] = {};
  float top = -INFINITY;
  float sum = 0;
  for (int start = low / key_block * key_block; start < num_keys; start += key_block) {
    const int count = min(key_block, num_keys - start);
    const int begin = max(low - start, 0);
    const std::int64_t at =
        (std::int64_t{pages[start / kv.page_tokens]} * kv.num_kv_heads + kv_head) * kv.page_tokens +
        start % kv.page_tokens;
    const float* keys = static_cast<const float*>(kv.keys) + at * d;
    const float* values = static_cast<const float*>(kv.values) + at * kv.value_stride();
    __syncthreads();  // the query is there, and nobody reads the scores any more
    for (int k = begin + thread / warp_lanes; k < count; k += threads / warp_lanes) {
      float score = 0;
      for (int i = lane; i < d; i += warp_lanes) score = fmaf(query[i], keys[k * d + i], score);
      score = warp_sum(score);
      if (lane == 0) scores[k] = score * scale;
    }
    __syncthreads();
    const float before = top;
    for (int k = begin; k < count; ++k) top = fmaxf(top, scores[k]);
    const float factor = expf(before - top);
    sum *= factor;
#pragma unroll
    for (int i = 0; i < held; ++i) out[i] *= factor;
    for (int k = begin; k < count; ++k) {
      const float weight = expf(scores[k] - top);
      sum += weight;
#pragma unroll
      for (int i = 0; i < held; ++i) {
        const int column = thread + i * threads;
        if (column < v) {
          out[i] = fmaf(weight, values[std::int64_t{k} * kv.value_stride() + column], out[i]);
        }
      }
    }
  }
  float keep = 1;
  if (args.sinks != nullptr) {
    const float highest = fmaxf(top, args.sinks[head]);
    keep = expf(top - highest);
    sum = fmaf(sum, keep, expf(args.sinks[head] - highest));
  }
  float* to = static_cast<float*>(args.out) + row * args.out_row() + head * v;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int column = thread + i * threads;
    if (column < v) to[column] = out[i] * keep / sum;
  }
}

template <class T>
void tiles_then_merges(cudaStream_t stream, const AttentionArgs& args) {
  if (args.wgmma) {
    attention_group_tiles<T>(stream, args);
  } else {
    attention_tiles<T>(stream, args);
  }
  launch(stream, "attention", &merge_kernel<T>,
         dim3(static_cast<unsigned>(args.num_merges), static_cast<unsigned>(args.num_heads)),
         threads, 0, args, partial_floats_per_head(args.kv.values_dim()));
}

}  // namespace

void attention(cudaStream_t stream, DType dtype, const AttentionArgs& args) {
  switch (dtype) {
    case DType::bfloat16:
      return tiles_then_merges<__nv_bfloat16>(stream, args);
    case DType::float16:
      return tiles_then_merges<__half>(stream, args);
    case DType::float32:
      return launch(
          stream, "attention", &plain_kernel,
          dim3(static_cast<unsigned>(args.num_rows), static_cast<unsigned>(args.num_heads)),
          threads, (latent_head_dim + key_block) * sizeof(float), args);
    case DType::uint8:
      break;  // on file only
  }
}

}  // namespace atl::compute::cuda
