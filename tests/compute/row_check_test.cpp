// What finds out, before the first pass, that a library's GEMM would make results depend on the
// layout: it has to pass ours, and to find a row that changes with its neighbours, with the number
// of threads, or with the columns beside its own.

#include "compute/cpu/row_check.hpp"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "app/model/model_config.hpp"
#include "compute/cpu/one_dnn_gemm.hpp"
#include "compute/cpu/panel_gemm.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using namespace compute;

const std::vector<GemmUse> uses = {{48, 96, Finish::rounded}, {64, 40, Finish::gelu}};

/// Ours, but for one number.
class Changed final : public Gemm {
 public:
  using Spoils = std::function<bool(int n, std::int64_t rows, int threads)>;
  Changed(int threads, Spoils spoils)
      : own_(DType::bfloat16, threads, cpu_isa()), threads_(threads), spoils_(std::move(spoils)) {}

  PackedWeight pack(const void* weight, int n, int k) override { return own_.pack(weight, n, k); }
  std::int64_t packed_bytes(int n, int k) const override { return own_.packed_bytes(n, k); }
  void prepare(const PackedWeight& weight, Finish finish) override { own_.prepare(weight, finish); }
  using Gemm::run;
  void run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out, Finish finish,
           const float* bias) override {
    own_.run(weight, in, rows, out, finish, bias);
    const std::int64_t last = rows * weight.n() - 1;
    if (finish == Finish::float32 && spoils_(weight.n(), rows, threads_)) {
      static_cast<float*>(out)[last] = std::nextafter(static_cast<float*>(out)[last], 0.0F);
    }
  }
  void run(std::span<const Product> products) override { own_.run(products); }
  int rows_at_once() const override { return own_.rows_at_once(); }
  std::string description() const override { return "changed"; }
  std::int64_t buffer_bytes() const override { return own_.buffer_bytes(); }
  std::int64_t buffer_bytes(std::span<const GemmUse> all) const override {
    return own_.buffer_bytes(all);
  }

 private:
  PanelGemm own_;
  int threads_;
  Spoils spoils_;
};

std::optional<GemmUse> found(const Changed::Spoils& spoils) {
  const auto make = [&](int threads) { return std::make_unique<Changed>(threads, spoils); };
  return use_that_changes_rows(make, DType::bfloat16, uses);
}

TEST(RowCheck, PassesOurOwn) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    const auto make = [dtype](int threads) {
      return std::make_unique<PanelGemm>(dtype, threads, cpu_isa());
    };
    EXPECT_EQ(use_that_changes_rows(make, dtype, uses), std::nullopt) << name_of(dtype);
  }
}

TEST(RowCheck, FindsRowsThatChangeWithTheirNumber) {
  EXPECT_EQ(found([](int n, std::int64_t rows, int) { return n == 48 && rows == 12; }), uses[0]);
  EXPECT_EQ(found([](int n, std::int64_t rows, int) { return n == 64 && rows < 128; }), uses[1]);
}

TEST(RowCheck, FindsRowsThatChangeWithTheThreads) {
  EXPECT_EQ(found([](int, std::int64_t, int threads) { return threads > 1; }), uses[0]);
  EXPECT_EQ(found([](int n, std::int64_t, int threads) { return n == 32 && threads == 15; }),
            uses[1]);
}

TEST(RowCheck, FindsRowsThatChangeWithTheColumnsBeside) {
  EXPECT_EQ(found([](int n, std::int64_t, int) { return n == 24; }), uses[0]);
  EXPECT_EQ(found([](int n, std::int64_t, int) { return n == 8; }), uses[1]);
}

TEST(RowCheck, FindsRowsThatChangeWhereARankHasSomeColumns) {
  const auto found_with = [](const std::vector<GemmUse>& cuts) {
    const auto make = [&](int threads) {
      return std::make_unique<Changed>(threads, [](int n, std::int64_t, int) { return n == 20; });
    };
    return use_that_changes_rows(make, DType::bfloat16, uses, cuts);
  };
  EXPECT_EQ(found_with({{20, 40}}), uses[1]);
  EXPECT_EQ(found_with({{20, 32}, {12, 40}}), std::nullopt);
  ModelShape shape = tiny_shape();  // 4 heads of 16 for 2 KV heads, hidden 48
  const auto cuts = gemm_cuts(shape, share_attention(shape, 4, 1, OutputCut::columns));
  EXPECT_EQ(cuts, (std::vector<GemmUse>{{12, 64}, {48, 48}}));
  EXPECT_TRUE(gemm_cuts(shape, {}).empty());
  // Experts of 40 inner columns: up and gate, and down.
  EXPECT_EQ(gemm_cuts(shape, {}, share_experts(shape, 4, 1)),
            (std::vector<GemmUse>{{10, 48}, {12, 40}}));
}

TEST(RowCheck, OneDnnIsNeverGivenThreadsToSplitSumsAmong) {
  if (cpu_isa() < CpuIsa::avx512_bf16) GTEST_SKIP() << "oneDNN has no bfloat16 on this CPU";
  omp_set_num_threads(64);
  OneDnnGemm gemm(DType::bfloat16, 64, cpu_isa());
  const AlignedBuffer weight(std::size_t{64} * 64 * sizeof(std::uint16_t));
  const PackedWeight packed = gemm.pack(weight.data(), 64, 64);
  EXPECT_LT(omp_get_max_threads(), 16);
  omp_set_num_threads(64);
  gemm.prepare(packed, Finish::rounded);
  EXPECT_LT(omp_get_max_threads(), 16);
  const AlignedBuffer in(std::size_t{tile_rows} * 64 * sizeof(std::uint16_t));
  const AlignedBuffer out(std::size_t{tile_rows} * 64 * sizeof(std::uint16_t));
  omp_set_num_threads(64);
  gemm.run(packed, in.data(), 1, out.data(), Finish::rounded);
  EXPECT_LT(omp_get_max_threads(), 16);
}

TEST(RowCheck, TriesOneDnn) {
  if (cpu_isa() < CpuIsa::avx512_bf16) GTEST_SKIP() << "oneDNN has no bfloat16 on this CPU";
  const auto make = [](int threads) {
    return std::make_unique<OneDnnGemm>(DType::bfloat16, threads, cpu_isa());
  };
  EXPECT_EQ(use_that_changes_rows(make, DType::bfloat16, uses), std::nullopt);
}

TEST(RowCheck, TriesEveryGemmOfAModelOnce) {
  const auto all = gemm_uses(preset("moe-16l-tiny").shape);
  // q, k and v together; o and down, which are of one shape here; router, up, head.
  EXPECT_EQ(all.size(), 5U);
}

}  // namespace
}  // namespace atl::testing
