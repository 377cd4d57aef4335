#pragma once
// The arithmetic behind the emulated cuBLASLt: float32 products in a fixed order.

#include <library_types.h>

#include <cstdint>

namespace emulated {

/// Element (i, j) lies at i * row_stride + j * column_stride.
struct Matrix {
  const void* data = nullptr;
  cudaDataType_t type = CUDA_R_32F;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
};

/// Of gelu_tanh_rough the tanh is good to about 2^-11 of its value, as that of the hardware is.
enum class Activation { none, relu, gelu_tanh, gelu_tanh_rough };

/// d [m, n] = activation(alpha * a [m, k] * b [k, n] + beta * c [m, n] + bias [m])
struct Gemm {
  std::int64_t m = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  Matrix a, b, c, d;  ///< c may be d; d.data is written to
  float alpha = 1;
  float beta = 0;
  const void* bias = nullptr;  ///< null: none
  cudaDataType_t bias_type = CUDA_R_32F;
  Activation activation = Activation::none;
  int splits = 1;  ///< parts of k that are summed apart and then added
};

/// Every element of d is computed in an order that depends on k and `splits` alone.
void run_gemm(const Gemm& gemm);

/// Bytes of an element; 0 for types that run_gemm does not know.
std::int64_t element_bytes(cudaDataType_t type);

}  // namespace emulated
