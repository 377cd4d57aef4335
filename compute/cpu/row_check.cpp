#include "compute/cpu/row_check.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/cpu/operations.hpp"
#include "compute/weights.hpp"

namespace atl::compute {

namespace {

/// Values of about 1, of many exponents and both signs, so that another order of adding shows.
AlignedBuffer random_elements(DType dtype, std::int64_t count) {
  AlignedBuffer floats(static_cast<std::size_t>(count) * sizeof(float));
  std::uint64_t state = 0x9e3779b97f4a7c15ULL;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const auto bits = static_cast<std::uint32_t>(state >> 32U);
    const float sign = (bits & 1U) != 0 ? -1.0F : 1.0F;
    floats.as<float>()[i] = std::ldexp(sign * (1.0F + static_cast<float>(bits >> 8U) * 0x1p-24F),
                                       -static_cast<int>((bits >> 1U) % 8U));
  }
  AlignedBuffer elements(static_cast<std::size_t>(count) * size_of(dtype));
  // Rounding is the same with all of them, and this one every CPU has.
  kernels_for(dtype, CpuIsa::avx2).from_float(floats.as<float>(), elements.data(), count);
  return elements;
}

class RowCheck {
 public:
  RowCheck(const GemmMaker& make, DType dtype, const GemmUse& use)
      : make_(make),
        dtype_(dtype),
        use_(use),
        rows_(random_elements(dtype, std::int64_t{tile_rows} * use.k)),
        weight_(random_elements(dtype, std::int64_t{use.n} * use.k)) {}

  bool passes() {
    // Of a GEMM with an activation behind it the sums are what can differ.
    const bool sums = use_.finish != Finish::rounded && use_.finish != Finish::add;
    return keeps(Finish::float32) && (sums || keeps(Finish::rounded));
  }

 private:
  bool keeps(Finish finish) {
    const AlignedBuffer all = product(finish, 1, 0, use_.n, 0, tile_rows);
    for (const int threads : {1, 3}) {
      for (const int rows : row_classes) {
        if (!same(all, finish, threads, 0, use_.n, rows)) return false;
      }
      for (const int part : {2, 8}) {
        const int columns = use_.n / part;
        if (columns == 0 || use_.n % part != 0) continue;
        for (const int rows : {1, 16, tile_rows}) {
          if (!same(all, finish, threads, use_.n - columns, columns, rows)) return false;
        }
      }
    }
    return true;
  }

  /// Whether the last `rows` rows by columns [first, first + columns) are those of `all`.
  bool same(const AlignedBuffer& all, Finish finish, int threads, int first, int columns,
            int rows) {
    const std::size_t element = finish == Finish::float32 ? sizeof(float) : size_of(dtype_);
    const AlignedBuffer some = product(finish, threads, first, columns, tile_rows - rows, rows);
    const auto row = [element](const AlignedBuffer& from, std::int64_t r, int n, int column) {
      return from.as<char>() + static_cast<std::size_t>(r * n + column) * element;
    };
    for (int r = 0; r < rows; ++r) {
      if (std::memcmp(row(some, r, columns, 0), row(all, tile_rows - rows + r, use_.n, first),
                      static_cast<std::size_t>(columns) * element) != 0) {
        return false;
      }
    }
    return true;
  }

  AlignedBuffer product(Finish finish, int threads, int first, int columns, int first_row,
                        int rows) {
    omp_set_num_threads(threads);
    const auto gemm = make_(threads);
    const auto row_bytes = static_cast<std::size_t>(use_.k) * size_of(dtype_);
    const auto packed = gemm->pack(weight_.as<char>() + static_cast<std::size_t>(first) * row_bytes,
                                   columns, use_.k);
    gemm->prepare(packed, finish);
    AlignedBuffer out(static_cast<std::size_t>(tile_rows * columns) * sizeof(float));
    // Rows are rounded up to whole tiles when they are read.
    AlignedBuffer in(tile_rows * row_bytes);
    std::memcpy(in.data(), rows_.as<char>() + static_cast<std::size_t>(first_row) * row_bytes,
                static_cast<std::size_t>(rows) * row_bytes);
    gemm->run(packed, in.data(), rows, out.data(), finish);
    return out;
  }

  const GemmMaker& make_;
  DType dtype_;
  GemmUse use_;
  AlignedBuffer rows_;    // [tile_rows, k]
  AlignedBuffer weight_;  // [n, k]
};

}  // namespace

std::optional<GemmUse> use_that_changes_rows(const GemmMaker& make, DType dtype,
                                             std::span<const GemmUse> uses) {
  const int before = omp_get_max_threads();
  const auto found = std::find_if(uses.begin(), uses.end(), [&](const GemmUse& use) {
    return !RowCheck(make, dtype, use).passes();
  });
  omp_set_num_threads(before);
  return found == uses.end() ? std::nullopt : std::optional(*found);
}

std::vector<GemmUse> gemm_uses(const ModelShape& shape) {
  std::set<GemmUse> uses;
  for (const WeightInfo& info : weights_of(shape)) {
    if (info.use == Use::vector || info.id == Weight::embedding) continue;
    uses.insert({static_cast<int>(info.rows), static_cast<int>(info.cols),
                 finish_of(info.id, shape.activation)});
  }
  return {uses.begin(), uses.end()};
}

CpuIsa widest_cpu_isa_for(const ModelShape& shape, DType dtype) {
  const CpuIsa widest = widest_cpu_isa();
  if (widest != CpuIsa::avx512_amx || dtype != DType::bfloat16) return widest;
  if (!OneDnnGemm::limit_to_amx()) return CpuIsa::avx512_bf16;
  const auto make = [dtype](int threads) {
    return std::make_unique<OneDnnGemm>(dtype, threads, CpuIsa::avx512_amx);
  };
  const std::vector<GemmUse> uses = gemm_uses(shape);
  return use_that_changes_rows(make, dtype, uses) ? CpuIsa::avx512_bf16 : widest;
}

}  // namespace atl::compute
