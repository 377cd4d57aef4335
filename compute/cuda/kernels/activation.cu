// The activation functions between the GEMMs of an MLP.

#include <algorithm>
#include <type_traits>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 256;
/// Blocks for `work` items: enough for every multiprocessor, each thread then strides on.
dim3 strided_grid(std::int64_t work, int per_thread) {
  constexpr std::int64_t most = 132 * 16;
  return dim3(static_cast<unsigned>(
      std::min<std::int64_t>(most, divide_up(work, std::int64_t{threads} * per_thread))));
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

/// One block per row.
template <class T>
__global__ void __launch_bounds__(threads) gated_kernel(GatedArgs args) {
  const std::int64_t first = std::int64_t{blockIdx.x} * args.width;
  for (int i = static_cast<int>(threadIdx.x); i < args.width; i += threads) {
    float gate = args.gate[first + i];
    if (args.gate_bias != nullptr) gate += args.gate_bias[i];
    float up[1];
    to_floats(load_raw<1>(static_cast<const T*>(args.up) + first + i), up);
    float value[1] = {};
    if (args.clamped) {
      // fmaxf and fminf would take a number for NaN.
      gate = gate > args.limit ? args.limit : gate;
      up[0] = up[0] > args.limit ? args.limit : up[0] < -args.limit ? -args.limit : up[0];
      value[0] = times_sigmoid(gate, gate * args.alpha) * (up[0] + 1.0F);
    } else {
      value[0] = Swiglu::of(gate, up[0]);
    }
    store_raw(static_cast<T*>(args.out) + first + i, to_raw<T>(value));
  }
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(threads)
    add_bias_kernel(const float* sums, const float* bias, T* out, int width) {
  const std::int64_t first = std::int64_t{blockIdx.x} * width;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += threads) {
    const float value[1] = {sums[first + i] + bias[i]};
    store_raw(out + first + i, to_raw<T>(value));
  }
}

/// One warp per row.
template <class T>
__global__ void __launch_bounds__(warp_lanes)
    weigh_kernel(T* rows, const T* normed, const T* weight, int hidden) {
  const std::int64_t first = std::int64_t{blockIdx.x} * hidden;
  const int lane = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int i = lane; i < hidden; i += warp_lanes) {
    float x[1];
    float w[1];
    to_floats(load_raw<1>(normed + first + i), x);
    to_floats(load_raw<1>(weight + i), w);
    sum = fmaf(x[0], w[0], sum);
  }
  const float factor = times_sigmoid(1.0F, warp_sum(sum));
  for (int i = lane; i < hidden; i += warp_lanes) {
    float value[1];
    to_floats(load_raw<1>(rows + first + i), value);
    value[0] *= factor;
    store_raw(rows + first + i, to_raw<T>(value));
  }
}

}  // namespace

void gelu(cudaStream_t stream, DType dtype, const float* up, void* out, std::int64_t count) {
  activate<Gelu>(stream, "gelu", dtype, up, nullptr, out, count);
}

void swiglu(cudaStream_t stream, DType dtype, const float* gate, const void* up, void* out,
            std::int64_t count) {
  activate<Swiglu>(stream, "swiglu", dtype, gate, up, out, count);
}

void gated(cudaStream_t stream, DType dtype, const GatedArgs& args) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "gated", &gated_kernel<T>, dim3(static_cast<unsigned>(args.num_rows)), threads,
           0, args);
  });
}

void add_bias(cudaStream_t stream, DType dtype, const float* sums, const float* bias, void* out,
              int num_rows, int width) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "add_bias", &add_bias_kernel<T>, dim3(static_cast<unsigned>(num_rows)), threads,
           0, sums, bias, static_cast<T*>(out), width);
  });
}

void weigh_rows(cudaStream_t stream, DType dtype, void* rows, const void* normed,
                const void* weight, int num_rows, int hidden) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "weigh_rows", &weigh_kernel<T>, dim3(static_cast<unsigned>(num_rows)),
           warp_lanes, 0, static_cast<T*>(rows), static_cast<const T*>(normed),
           static_cast<const T*>(weight), hidden);
  });
}

}  // namespace atl::compute::cuda
