// Weights kept as codes, as elements for a product.

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/device.cuh"

namespace atl::compute::cuda {

namespace {

constexpr int threads = 256;

/// E4M3 without infinities.
__device__ inline float fp8_number(unsigned bits) {
  const unsigned exponent = (bits >> 3U) & 15U;
  const unsigned fraction = bits & 7U;
  float value = static_cast<float>(fraction) * 0.001953125F;  // 2^-9
  if (exponent > 0) value = __uint_as_float((exponent + 120U) << 23U | fraction << 20U);
  if ((bits & 127U) == 127U) value = NAN;
  return (bits & 128U) != 0 ? -value : value;
}

/// E2M1.
__device__ inline float mxfp4_number(unsigned bits) {
  const unsigned exponent = (bits >> 1U) & 3U;
  const unsigned fraction = bits & 1U;
  const float value = exponent == 0 ? 0.5F * static_cast<float>(fraction)
                                    : __uint_as_float((exponent + 126U) << 23U | fraction << 22U);
  return (bits & 8U) != 0 ? -value : value;
}

__device__ inline float number_of(Code code, const std::uint8_t* row, int column) {
  if (code == Code::fp8) return fp8_number(row[column]);
  const unsigned half = (row[column / 2] >> (column % 2 * 4)) & 15U;
  return code == Code::mxfp4 ? mxfp4_number(half) : static_cast<float>(static_cast<int>(half) - 8);
}

__device__ inline float scale_of(Code code, const void* scales, std::int64_t at) {
  if (code != Code::mxfp4) return static_cast<const float*>(scales)[at];
  const unsigned exponent = static_cast<const std::uint8_t*>(scales)[at];
  return exponent == 0 ? __uint_as_float(0x400000U) : __uint_as_float(exponent << 23U);
}

__device__ inline float rounded_as(DType dtype, float value) {
  if (dtype == DType::bfloat16) return to_float(round_to<__nv_bfloat16>(value));
  return dtype == DType::float16 ? to_float(round_to<__half>(value)) : value;
}

/// One block per row.
template <class T>
__global__ void __launch_bounds__(threads)
    unpack_kernel(CodedRows from, std::int64_t row_bytes, std::int64_t groups, T* out) {
  const std::int64_t r = blockIdx.x;
  const auto* codes = static_cast<const std::uint8_t*>(from.codes) + r * row_bytes;
  for (int i = static_cast<int>(threadIdx.x); i < from.cols; i += threads) {
    const float scale = scale_of(from.coding.code, from.scales, r * groups + i / from.coding.group);
    const float value = number_of(from.coding.code, codes, i) * scale;
    out[r * from.cols + i] = round_to<T>(rounded_as(from.rounded, value));
  }
}

}  // namespace

void unpack(cudaStream_t stream, DType dtype, const CodedRows& from, void* out) {
  with_element(dtype, [&](auto element) {
    using T = typename decltype(element)::type;
    launch(stream, "unpack", &unpack_kernel<T>, dim3(static_cast<unsigned>(from.rows)), threads, 0,
           from, from.coding.row_bytes(from.cols), from.coding.groups(from.cols),
           static_cast<T*>(out));
  });
}

}  // namespace atl::compute::cuda
