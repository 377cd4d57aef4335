#pragma once
// What a GPU itself reaches, to which benchmarks are held, and what they share: random data in the
// device's memory, and timing on a stream.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "compute/cuda/error.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/cuda/stream.hpp"
#include "compute/types.hpp"

namespace atl::gpu_bench {

/// FLOP/s of the fastest algorithm that cuBLASLt proposes for a BF16 product [cube, cube, cube] of
/// random numbers.
double best_gemm_rate(int cube);

/// out [rows, n] = in [rows, k] * weight [n, k]^T, all of `dtype`, float32 accumulation.
struct Product {
  DType dtype = DType::bfloat16;  ///< of 16 bits
  int n = 0, k = 0, rows = 0;
};
/// Seconds of the fastest of the algorithms that cuBLASLt proposes, in whatever order it sums.
/// `next_weight` gives each run its weight; `workspace` has gemm_workspace_bytes.
double fastest_product(const Product& product, const compute::cuda::Stream& stream, int repetitions,
                       const std::function<const void*()>& next_weight, const void* in, void* out,
                       void* workspace);

/// Bytes per second, read and written, of a copy inside the device's memory.
double copy_rate(std::size_t bytes);

/// Bytes of the device's L2 cache.
std::int64_t l2_bytes();
int multiprocessors();

/// Elements [first, ..) of one endless row of random numbers of deviation `deviation`.
void fill_normal(std::int64_t first, double deviation, DType dtype, std::span<std::byte> bytes);
std::vector<std::byte> random_values(std::int64_t count, double deviation, DType dtype);
double value_at(const void* data, std::size_t i, DType dtype);

/// Copies to the device; there when it returns.
compute::cuda::DeviceBuffer on_device(const void* data, std::size_t bytes);
/// `bytes` of the values, again and again.
compute::cuda::DeviceBuffer repeated_on_device(std::span<const std::byte> values,
                                               std::size_t bytes);

template <class T>
std::vector<T> to_host(const void* device, std::size_t count) {
  std::vector<T> values(count);
  compute::cuda::check(cudaMemcpy(values.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost),
                       "cudaMemcpy");
  return values;
}

/// Seconds of `work` on the stream, of `repetitions` in a row, after one run that does not count.
template <class Work>
double time_on(const compute::cuda::Stream& stream, int repetitions, Work&& work) {
  using compute::cuda::check;
  const compute::cuda::CudaEvent begin(compute::cuda::CudaEvent::Timing::on);
  const compute::cuda::CudaEvent end(compute::cuda::CudaEvent::Timing::on);
  work();
  begin.record(stream);
  for (int i = 0; i < repetitions; ++i) work();
  end.record(stream);
  check(cudaStreamSynchronize(stream.raw()), "cudaStreamSynchronize");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin.raw(), end.raw()), "cudaEventElapsedTime");
  return ms * 1e-3 / repetitions;
}

}  // namespace atl::gpu_bench
