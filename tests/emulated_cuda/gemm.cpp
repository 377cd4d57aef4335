#include "tests/emulated_cuda/gemm.hpp"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace emulated {
namespace {

constexpr int tile_rows = 16;
constexpr int tile_columns = 6;

using Vector = float __attribute__((vector_size(sizeof(float) * tile_rows), aligned(4)));

float load(const void* data, std::int64_t i, cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16BF:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case CUDA_R_16F:
      return __half2float(static_cast<const __half*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

void store(const void* data, std::int64_t i, cudaDataType_t type, float value) {
  void* to = const_cast<void*>(data);
  switch (type) {
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(value);
      break;
    case CUDA_R_16F:
      static_cast<__half*>(to)[i] = __float2half_rn(value);
      break;
    default:
      static_cast<float*>(to)[i] = value;
  }
}

/// `count` elements, `stride` apart, as floats `to_stride` apart.
void gather(const Matrix& from, std::int64_t start, std::int64_t stride, std::int64_t count,
            float* to, int to_stride) {
  if (from.type == CUDA_R_16BF) {
    const auto* data = static_cast<const std::uint16_t*>(from.data) + start;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(data[i * stride]) << 16U;
      std::memcpy(to + i * to_stride, &bits, sizeof bits);
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i)
    to[i * to_stride] = load(from.data, start + i * stride, from.type);
}

/// sums [tile_columns][tile_rows] += a [k, tile_rows] * b [k, tile_columns], k in rising order.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
void multiply_tile(const float* a, const float* b, std::int64_t k, float* sums) {
  Vector total[tile_columns];
  std::memcpy(total, sums, sizeof total);
  for (std::int64_t i = 0; i < k; ++i) {
    Vector column;
    std::memcpy(&column, a + i * tile_rows, sizeof column);
    for (int j = 0; j < tile_columns; ++j) total[j] += column * b[i * tile_columns + j];
  }
  std::memcpy(sums, total, sizeof total);
}

/// A fraction that is tanh up to 2^-11 of its value, or so; from 5 on it is 1.
float rough_tanh(float x) {
  if (std::abs(x) >= 5) return std::copysign(1.0F, x);
  const float y = x * x;
  return x * (10395 + y * (1260 + y * 21)) / (10395 + y * (4725 + y * (210 + y))) * (1 + 0x1p-12F);
}

float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return std::max(x, 0.0F);
    case Activation::gelu_tanh:
      return 0.5F * x * (1.0F + std::tanh(0.7978845608F * (x + 0.044715F * x * x * x)));
    case Activation::gelu_tanh_rough:
      return 0.5F * x * (1.0F + rough_tanh(0.7978845608F * (x + 0.044715F * x * x * x)));
    default:
      return x;
  }
}

void store_tile(const Gemm& g, std::int64_t row, std::int64_t column, const float* sums) {
  const std::int64_t rows = std::min<std::int64_t>(tile_rows, g.m - row);
  const std::int64_t columns = std::min<std::int64_t>(tile_columns, g.n - column);
  for (std::int64_t j = 0; j < columns; ++j) {
    for (std::int64_t i = 0; i < rows; ++i) {
      float value = g.alpha * sums[j * tile_rows + i];
      if (g.beta != 0)
        value +=
            g.beta *
            load(g.c.data, (row + i) * g.c.row_stride + (column + j) * g.c.column_stride, g.c.type);
      if (g.bias != nullptr) value += load(g.bias, row + i, g.bias_type);
      store(g.d.data, (row + i) * g.d.row_stride + (column + j) * g.d.column_stride, g.d.type,
            activate(value, g.activation));
    }
  }
}

/// b as [tile of columns][k, tile_columns], missing columns 0.
std::vector<float> pack_b(const Gemm& g) {
  const std::int64_t tiles = (g.n + tile_columns - 1) / tile_columns;
  std::vector<float> packed(static_cast<std::size_t>(tiles * g.k * tile_columns), 0.0F);
  for (std::int64_t j = 0; j < g.n; ++j)
    gather(g.b, j * g.b.column_stride, g.b.row_stride, g.k,
           packed.data() + j / tile_columns * g.k * tile_columns + j % tile_columns, tile_columns);
  return packed;
}

}  // namespace

std::int64_t element_bytes(cudaDataType_t type) {
  switch (type) {
    case CUDA_R_16BF:
    case CUDA_R_16F:
      return 2;
    case CUDA_R_32F:
      return 4;
    default:
      return 0;
  }
}

void run_gemm(const Gemm& g) {
  const std::vector<float> b = pack_b(g);
  const std::int64_t row_tiles = (g.m + tile_rows - 1) / tile_rows;
  const std::int64_t part = (g.k + g.splits - 1) / g.splits;
#pragma omp parallel if (g.m * g.n * g.k > 2'000'000)
  {
    std::vector<float> a(static_cast<std::size_t>(g.k * tile_rows));
#pragma omp for schedule(dynamic)
    for (std::int64_t tile = 0; tile < row_tiles; ++tile) {
      const std::int64_t row = tile * tile_rows;
      std::fill(a.begin(), a.end(), 0.0F);
      for (std::int64_t i = row; i < std::min(row + tile_rows, g.m); ++i)
        gather(g.a, i * g.a.row_stride, g.a.column_stride, g.k, a.data() + (i - row), tile_rows);
      for (std::int64_t column = 0; column < g.n; column += tile_columns) {
        float sums[tile_columns * tile_rows] = {};
        for (std::int64_t from = 0; from < g.k; from += part) {
          float partial[tile_columns * tile_rows] = {};
          multiply_tile(a.data() + from * tile_rows, b.data() + column * g.k + from * tile_columns,
                        std::min(part, g.k - from), partial);
          for (int i = 0; i < tile_columns * tile_rows; ++i) sums[i] += partial[i];
        }
        store_tile(g, row, column, sums);
      }
    }
  }
}

}  // namespace emulated
