// Moving rows (embedding, packing, KV pages) and the activation functions between two GEMMs.

#include <algorithm>
#include <type_traits>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 256;
/// Accesses of one thread that are in flight together.
constexpr int in_flight = 4;

/// Blocks for `work` items: enough for every multiprocessor, each thread then strides on.
dim3 strided_grid(std::int64_t work, int per_thread) {
  constexpr std::int64_t most = 132 * 16;
  return dim3(static_cast<unsigned>(
      std::min<std::int64_t>(most, divide_up(work, std::int64_t{threads} * per_thread))));
}

/// A row is `units` of type U (16 bytes, or one element).
template <class U>
__global__ void __launch_bounds__(threads)
    embed_kernel(const U* table, const std::int32_t* tokens, U* out, int units) {
  const std::int64_t row = blockIdx.x;
  const U* from = table + std::int64_t{tokens[row]} * units;
#pragma unroll in_flight
  for (int i = static_cast<int>(threadIdx.x); i < units; i += static_cast<int>(blockDim.x)) {
    out[row * units + i] = from[i];
  }
}

/// Every row is read once and written top_k times.
template <class U>
__global__ void __launch_bounds__(threads)
    pack_kernel(const U* rows, const std::int32_t* slots, U* packed, int top_k, int units) {
  const std::int64_t row = blockIdx.x;
  const int step = static_cast<int>(blockDim.x);
  for (int first = static_cast<int>(threadIdx.x); first < units; first += step * in_flight) {
    U held[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) {
      if (first + i * step < units) held[i] = rows[row * units + first + i * step];
    }
    for (int j = 0; j < top_k; ++j) {
      U* to = packed + std::int64_t{slots[row * top_k + j]} * units;
#pragma unroll
      for (int i = 0; i < in_flight; ++i) {
        if (first + i * step < units) to[first + i * step] = held[i];
      }
    }
  }
}

/// Rows of one sequence between its pages and [position, kv_head, head_dim]; `units` per head, one
/// block per position.
template <class U, bool gather>
__global__ void __launch_bounds__(threads)
    move_kv_kernel(KvPages kv, const std::int32_t* pages, int first_position, int units, U* keys,
                   U* values) {
  const int position = first_position + static_cast<int>(blockIdx.x);
  const int row_units = kv.num_kv_heads * units;
  const std::int64_t page = std::int64_t{pages[position / kv.page_tokens]} * kv.num_kv_heads;
  const std::int64_t token = position % kv.page_tokens;
  U* row_keys = keys + std::int64_t{blockIdx.x} * row_units;
  U* row_values = values + std::int64_t{blockIdx.x} * row_units;
  for (int i = static_cast<int>(threadIdx.x); i < row_units; i += static_cast<int>(blockDim.x)) {
    const std::int64_t at = ((page + i / units) * kv.page_tokens + token) * units + i % units;
    U* paged_key = static_cast<U*>(kv.keys) + at;
    U* paged_value = static_cast<U*>(kv.values) + at;
    if constexpr (gather) {
      row_keys[i] = *paged_key;
      row_values[i] = *paged_value;
    } else {
      *paged_key = row_keys[i];
      *paged_value = row_values[i];
    }
  }
}

/// Calls action(U{}, units per `width` elements) with the widest unit that the rows allow.
template <class Action, class... Pointers>
void with_unit(DType dtype, int width, Action&& action, Pointers... pointers) {
  const std::size_t bytes = static_cast<std::size_t>(width) * size_of(dtype);
  if (rows_are_aligned(bytes, pointers...)) {
    action(uint4{}, static_cast<int>(bytes / access_bytes));
  } else if (dtype == DType::float32) {
    action(std::uint32_t{}, width);
  } else {
    action(std::uint16_t{}, width);
  }
}

/// x / (1 + e^(-z)); tends to 0 or x without overflow, as 1/inf is 0.
__device__ inline float times_sigmoid(float x, float z) {
  return x / (1.0F + expf(-z));
}

struct Gelu {
  static __device__ float of(float x, float /*up*/) {
    // 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
    return times_sigmoid(x, x * fmaf(x * x, 0.07135481282F, 1.59576912161F));
  }
};
struct Swiglu {
  static __device__ float of(float gate, float up) { return times_sigmoid(gate, gate) * up; }
};

template <class Function, class T, int N>
__global__ void __launch_bounds__(threads)
    activation_kernel(const float* in, const T* up, T* out, std::int64_t count) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x * N;
  for (std::int64_t i = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N; i < count;
       i += stride) {
    float values[N];
    float factors[N] = {};
    load_floats(in + i, values);
    if constexpr (std::is_same_v<Function, Swiglu>) to_floats(load_raw<N>(up + i), factors);
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] = Function::of(values[k], factors[k]);
    store_raw(out + i, to_raw<T>(values));
  }
}

template <class Function>
void activate(cudaStream_t stream, std::string_view name, DType dtype, const float* in,
              const void* up, void* out, std::int64_t count) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    const T* factor = static_cast<const T*>(up);
    T* to = static_cast<T*>(out);
    if (rows_are_aligned(static_cast<std::size_t>(count) * sizeof(T), in, up, out)) {
      launch(stream, name, &activation_kernel<Function, T, wide<T>>, strided_grid(count, wide<T>),
             threads, 0, in, factor, to, count);
    } else {
      launch(stream, name, &activation_kernel<Function, T, 1>, strided_grid(count, 1), threads, 0,
             in, factor, to, count);
    }
  });
}

template <bool gather>
void move_kv(cudaStream_t stream, std::string_view name, DType dtype, const KvPages& kv,
             const std::int32_t* pages, int first_position, int num_positions, void* keys,
             void* values) {
  const auto run = [&](auto unit, int units) {
    using U = decltype(unit);
    launch(stream, name, &move_kv_kernel<U, gather>, dim3(static_cast<unsigned>(num_positions)),
           static_cast<unsigned>(threads_for(kv.num_kv_heads * units, 1, threads)), 0, kv, pages,
           first_position, units, static_cast<U*>(keys), static_cast<U*>(values));
  };
  with_unit(dtype, kv.head_dim, run, kv.keys, kv.values, keys, values);
}

}  // namespace

void embed(cudaStream_t stream, DType dtype, const void* table, const std::int32_t* tokens,
           void* out, int num_tokens, int hidden) {
  const auto run = [&](auto unit, int units) {
    using U = decltype(unit);
    launch(stream, "embed", &embed_kernel<U>, dim3(static_cast<unsigned>(num_tokens)),
           static_cast<unsigned>(threads_for(units, in_flight, threads)), 0,
           static_cast<const U*>(table), tokens, static_cast<U*>(out), units);
  };
  with_unit(dtype, hidden, run, table, out);
}

void pack(cudaStream_t stream, DType dtype, const void* rows, const std::int32_t* slots,
          void* packed, int num_tokens, int top_k, int hidden) {
  const auto run = [&](auto unit, int units) {
    using U = decltype(unit);
    launch(stream, "pack", &pack_kernel<U>, dim3(static_cast<unsigned>(num_tokens)),
           static_cast<unsigned>(threads_for(units, in_flight, threads)), 0,
           static_cast<const U*>(rows), slots, static_cast<U*>(packed), top_k, units);
  };
  with_unit(dtype, hidden, run, rows, packed);
}

void gelu(cudaStream_t stream, DType dtype, const float* up, void* out, std::int64_t count) {
  activate<Gelu>(stream, "gelu", dtype, up, nullptr, out, count);
}

void swiglu(cudaStream_t stream, DType dtype, const float* gate, const void* up, void* out,
            std::int64_t count) {
  activate<Swiglu>(stream, "swiglu", dtype, gate, up, out, count);
}

void gather_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
               int first_position, int num_positions, void* keys, void* values) {
  move_kv<true>(stream, "gather_kv", dtype, kv, pages, first_position, num_positions, keys, values);
}

void scatter_kv(cudaStream_t stream, DType dtype, const KvPages& kv, const std::int32_t* pages,
                int first_position, int num_positions, const void* keys, const void* values) {
  move_kv<false>(stream, "scatter_kv", dtype, kv, pages, first_position, num_positions,
                 const_cast<void*>(keys), const_cast<void*>(values));
}

}  // namespace atl::compute::cuda
