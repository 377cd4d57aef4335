#include "perf/gpu_ceilings.hpp"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "compute/convert.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "compute/error.hpp"

namespace atl::gpu_bench {

using compute::cuda::check;
using compute::cuda::CudaEvent;
using compute::cuda::DeviceBuffer;
using compute::cuda::Stream;

namespace {

/// The finaliser of SplitMix64: every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31U);
}

/// About normal, of deviation 1: the sum of four uniform numbers of 16 bits, centred.
float about_normal(std::uint64_t index) {
  const std::uint64_t bits = mix(index * 0x9e3779b97f4a7c15U);
  const std::uint64_t pairs = (bits & 0x0000ffff0000ffffU) + ((bits >> 16U) & 0x0000ffff0000ffffU);
  const int sum = static_cast<int>((pairs & 0xffffffffU) + (pairs >> 32U)) - 2 * 65535;
  constexpr float deviation = 37837.23F;
  return static_cast<float>(sum) / deviation;
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::bfloat16 ? CUDA_R_16BF : CUDA_R_16F;
}

/// Owns the descriptors of one plain product.
struct Descriptors {
  explicit Descriptors(const Product& p) {
    check(cublasLtCreate(&handle), "cublasLtCreate");
    check(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublasLtMatmulDescCreate");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                         sizeof transposed),
          "cublasLtMatmulDescSetAttribute");
    create(weight, p.dtype, p.k, p.n);
    create(in, p.dtype, p.k, p.rows);
    create(out, p.dtype, p.n, p.rows);
    check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const std::uint64_t most = compute::cuda::gemm_workspace_bytes;
    check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &most, sizeof most),
          "cublasLtMatmulPreferenceSetAttribute");
  }
  ~Descriptors() {
    cublasLtMatmulPreferenceDestroy(preference);
    for (cublasLtMatrixLayout_t layout : {weight, in, out}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
  }
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, in = nullptr, out = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;

 private:
  /// cuBLASLt counts in columns: a row-major [columns, rows] is its [rows, columns].
  static void create(cublasLtMatrixLayout_t& layout, DType dtype, int rows, int columns) {
    check(cublasLtMatrixLayoutCreate(&layout, type_of(dtype), static_cast<std::uint64_t>(rows),
                                     static_cast<std::uint64_t>(columns), rows),
          "cublasLtMatrixLayoutCreate");
  }
};

}  // namespace

void fill_normal(std::int64_t first, double deviation, DType dtype, std::span<std::byte> bytes) {
  constexpr std::int64_t piece = 1 << 12;
  const auto count = static_cast<std::int64_t>(bytes.size() / size_of(dtype));
#pragma omp parallel for schedule(static)
  for (std::int64_t begin = 0; begin < count; begin += piece) {
    std::array<float, piece> values;
    const auto n = static_cast<std::size_t>(std::min(piece, count - begin));
    for (std::size_t i = 0; i < n; ++i) {
      values[i] = static_cast<float>(deviation) *
                  about_normal(static_cast<std::uint64_t>(first + begin) + i);
    }
    compute::from_float(std::span(values).first(n),
                        bytes.data() + static_cast<std::size_t>(begin) * size_of(dtype), dtype);
  }
}

std::vector<std::byte> random_values(std::int64_t count, double deviation, DType dtype) {
  std::vector<std::byte> values(static_cast<std::size_t>(count) * size_of(dtype));
  fill_normal(0, deviation, dtype, values);
  return values;
}

double value_at(const void* data, std::size_t i, DType dtype) {
  float value = 0;
  compute::to_float(static_cast<const std::byte*>(data) + i * size_of(dtype), dtype,
                    std::span(&value, 1));
  return value;
}

DeviceBuffer on_device(const void* data, std::size_t bytes) {
  DeviceBuffer buffer(bytes, "a benchmark's data");
  check(cudaMemcpy(buffer.data(), data, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  // The copy of pageable memory may still be under way, and streams here do not wait for it.
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return buffer;
}

DeviceBuffer repeated_on_device(std::span<const std::byte> values, std::size_t bytes) {
  DeviceBuffer buffer(bytes, "a benchmark's data");
  auto* const to = static_cast<std::byte*>(buffer.data());
  const std::size_t once = std::min(values.size(), bytes);
  check(cudaMemcpy(to, values.data(), once, cudaMemcpyHostToDevice), "cudaMemcpy");
  // Whole repetitions, twice as many each time.
  for (std::size_t have = once; have < bytes; have *= 2) {
    check(cudaMemcpy(to + have, to, std::min(have, bytes - have), cudaMemcpyDeviceToDevice),
          "cudaMemcpy");
  }
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  return buffer;
}

double fastest_product(const Product& p, const Stream& stream, int repetitions,
                       const std::function<const void*()>& next_weight, const void* in, void* out,
                       void* workspace) {
  const Descriptors d(p);
  std::array<cublasLtMatmulHeuristicResult_t, 8> found;
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(d.handle, d.desc, d.weight, d.in, d.out, d.out, d.preference,
                                       static_cast<int>(found.size()), found.data(), &count),
        "cublasLtMatmulAlgoGetHeuristic");
  const float one = 1;
  const float zero = 0;
  double best = 1e30;
  for (int i = 0; i < count; ++i) {
    best = std::min(
        best, time_on(stream, repetitions, [&] {
          check(cublasLtMatmul(d.handle, d.desc, &one, next_weight(), d.weight, in, d.in, &zero,
                               out, d.out, out, d.out, &found[static_cast<std::size_t>(i)].algo,
                               workspace, compute::cuda::gemm_workspace_bytes, stream.raw()),
                "cublasLtMatmul");
        }));
  }
  require(count > 0, "cuBLASLt proposes no algorithm for {} rows of {} x {}", p.rows, p.n, p.k);
  return best;
}

double best_gemm_rate(int cube) {
  const auto values = random_values(std::int64_t{cube} * cube, 1, DType::bfloat16);
  const DeviceBuffer a = on_device(values.data(), values.size());
  const DeviceBuffer b = on_device(values.data(), values.size());
  const DeviceBuffer out(values.size(), "the reference product");
  const DeviceBuffer workspace(compute::cuda::gemm_workspace_bytes, "cuBLASLt's workspace");
  const Stream stream;
  const double seconds = fastest_product(
      {DType::bfloat16, cube, cube, cube}, stream, 5, [&] { return a.data(); }, b.data(),
      out.data(), workspace.data());
  return 2.0 * cube * cube * cube / seconds;
}

double copy_rate(std::size_t bytes) {
  const DeviceBuffer from(bytes, "the copy benchmark");
  const DeviceBuffer to(bytes, "the copy benchmark");
  const Stream stream;
  check(cudaMemsetAsync(from.data(), 1, bytes, stream.raw()), "cudaMemsetAsync");
  const double seconds = time_on(stream, 10, [&] {
    check(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream.raw()),
          "cudaMemcpyAsync");
  });
  return 2.0 * static_cast<double>(bytes) / seconds;
}

namespace {

int attribute(cudaDeviceAttr which) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

}  // namespace

std::int64_t l2_bytes() {
  return attribute(cudaDevAttrL2CacheSize);
}
int multiprocessors() {
  return attribute(cudaDevAttrMultiProcessorCount);
}

}  // namespace atl::gpu_bench
