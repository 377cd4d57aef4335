#include "compute/cpu/row_check.hpp"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/weight_cut.hpp"

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

/// The columns from `first` on of one weight, packed for a number of threads.
class Columns {
 public:
  Columns(const GemmMaker& make, int threads, const void* weight, int n, int k, DType dtype)
      : threads_(threads), row_bytes_(static_cast<std::size_t>(k) * size_of(dtype)) {
    omp_set_num_threads(threads);
    gemm_ = make(threads);
    packed_ = gemm_->pack(weight, n, k);
    for (const Finish finish : finishes) gemm_->prepare(packed_, finish);
    in_ = AlignedBuffer(tile_rows * row_bytes_);  // rows are rounded up to whole tiles
    out_ = AlignedBuffer(static_cast<std::size_t>(tile_rows * n) * sizeof(float));
  }

  /// Of the last `rows` of a tile's rows; valid until the next call.
  const AlignedBuffer& product(Finish finish, const AlignedBuffer& tile, int rows) {
    omp_set_num_threads(threads_);
    std::memcpy(in_.data(),
                tile.as<char>() + static_cast<std::size_t>(tile_rows - rows) * row_bytes_,
                static_cast<std::size_t>(rows) * row_bytes_);
    gemm_->run(packed_, in_.data(), rows, out_.data(), finish);
    return out_;
  }

  /// What sums can become in the library itself.
  static constexpr std::array finishes = {Finish::float32, Finish::rounded};

 private:
  int threads_;
  std::size_t row_bytes_;
  std::unique_ptr<Gemm> gemm_;
  PackedWeight packed_;
  AlignedBuffer in_;
  AlignedBuffer out_;
};

class RowCheck {
 public:
  RowCheck(const GemmMaker& make, DType dtype, const GemmUse& use, std::span<const GemmUse> cuts)
      : make_(make),
        dtype_(dtype),
        use_(use),
        columns_(columns_to_try(use, cuts)),
        rows_(random_elements(dtype, std::int64_t{tile_rows} * use.k)),
        weight_(random_elements(dtype, std::int64_t{use.n} * use.k)) {}

  bool passes() {
    Columns whole = columns(1, 0);
    for (const int threads : {1, most_one_dnn_threads}) {
      for (const int count : columns_) {
        const int first = use_.n - count;
        Columns some = columns(threads, first);
        if (!same(whole, some, first)) return false;
      }
    }
    return true;
  }

 private:
  static std::set<int> columns_to_try(const GemmUse& use, std::span<const GemmUse> cuts) {
    std::set<int> counts = {use.n};
    for (const int part : {2, 8}) {
      if (use.n >= part && use.n % part == 0) counts.insert(use.n / part);
    }
    for (const GemmUse& cut : cuts) {
      if (cut.k == use.k && cut.n < use.n) counts.insert(cut.n);
    }
    return counts;
  }

  Columns columns(int threads, int first) {
    const auto before = static_cast<std::size_t>(first) * static_cast<std::size_t>(use_.k);
    return Columns(make_, threads, weight_.as<char>() + before * size_of(dtype_), use_.n - first,
                   use_.k, dtype_);
  }

  /// Whether columns from `first` on are those of the whole, in every class of rows.
  bool same(Columns& whole, Columns& some, int first) {
    for (const Finish finish : Columns::finishes) {
      const std::size_t element = finish == Finish::float32 ? sizeof(float) : size_of(dtype_);
      const char* all = whole.product(finish, rows_, tile_rows).as<char>();
      const auto bytes = static_cast<std::size_t>(use_.n - first) * element;
      for (const int rows : row_classes) {
        const char* got = some.product(finish, rows_, rows).as<char>();
        for (int r = 0; r < rows; ++r) {
          const auto row = static_cast<std::size_t>(tile_rows - rows + r);
          const char* wanted =
              all +
              (row * static_cast<std::size_t>(use_.n) + static_cast<std::size_t>(first)) * element;
          if (std::memcmp(got + static_cast<std::size_t>(r) * bytes, wanted, bytes) != 0) {
            return false;
          }
        }
      }
    }
    return true;
  }

  const GemmMaker& make_;
  DType dtype_;
  GemmUse use_;
  std::set<int> columns_;
  AlignedBuffer rows_;    // [tile_rows, k]
  AlignedBuffer weight_;  // [n, k]
};

}  // namespace

std::optional<GemmUse> use_that_changes_rows(const GemmMaker& make, DType dtype,
                                             std::span<const GemmUse> uses,
                                             std::span<const GemmUse> cuts) {
  const int before = omp_get_max_threads();
  const auto found = std::find_if(uses.begin(), uses.end(), [&](const GemmUse& use) {
    return !RowCheck(make, dtype, use, cuts).passes();
  });
  omp_set_num_threads(before);
  return found == uses.end() ? std::nullopt : std::optional(*found);
}

namespace {
GemmUse use_of(const WeightInfo& info) {
  return {static_cast<int>(info.rows), static_cast<int>(info.cols)};
}
}  // namespace

std::vector<GemmUse> gemm_uses(const ModelShape& shape) {
  std::set<GemmUse> uses;
  for (const WeightInfo& info : weights_of(shape)) {
    if (info.use == Use::vector || info.id == Weight::embedding) continue;
    uses.insert(use_of(info));
  }
  return {uses.begin(), uses.end()};
}

std::vector<GemmUse> gemm_cuts(const ModelShape& shape, const AttentionShare& attention,
                               const ExpertShare& experts) {
  std::set<GemmUse> cuts;
  Part part;
  part.expert_share = experts;  // all members' parts are alike
  for (int place = 0; place < attention.members; ++place) {
    part.attention = share_attention(shape, attention.members, place, attention.output);
    for (const WeightInfo& info : weights_of(shape)) {
      if (info.use == Use::vector) continue;
      const WeightInfo own = own_weight(shape, part, info);
      if (own.rows < info.rows) cuts.insert(use_of(own));
    }
  }
  return {cuts.begin(), cuts.end()};
}

CpuIsa widest_cpu_isa_for(const ModelShape& shape, DType dtype, const AttentionShare& attention,
                          const ExpertShare& experts) {
  const CpuIsa widest = widest_cpu_isa();
  if (widest != CpuIsa::avx512_amx || dtype != DType::bfloat16) return widest;
  if (wants_own_gemms(shape) || !OneDnnGemm::limit_to_amx()) return CpuIsa::avx512_bf16;
  const auto make = [dtype](int threads) {
    return std::make_unique<OneDnnGemm>(dtype, threads, CpuIsa::avx512_amx);
  };
  const std::vector<GemmUse> uses = gemm_uses(shape);
  const std::vector<GemmUse> cuts = gemm_cuts(shape, attention, experts);
  return use_that_changes_rows(make, dtype, uses, cuts) ? CpuIsa::avx512_bf16 : widest;
}

}  // namespace atl::compute
