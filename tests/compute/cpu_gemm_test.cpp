// GEMMs against the oracle, and the property everything rests on: a row's result does not depend on
// how many rows came with it, where in a tile it lies, or the number of threads.

#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>

#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kernels.hpp"
#include "compute/cpu/one_dnn_gemm.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::Finish;

struct Case {
  int n;
  int k;
};

class CpuGemm : public ::testing::TestWithParam<std::tuple<DType, Case>> {
 protected:
  static constexpr int rows = 128;

  /// Room for a whole tile behind every row.
  std::vector<std::byte> run(int num_threads, int first, int count, Finish finish) {
    omp_set_num_threads(num_threads);
    const auto gemm = compute::make_gemm(dtype_, num_threads);
    const auto weight = gemm->pack(w_.data(), n_, k_);
    gemm->prepare(weight, finish);
    const std::size_t element = finish == Finish::float32 ? 4 : size_of(dtype_);
    std::vector<std::byte> c(static_cast<std::size_t>(2 * rows * n_) * element);
    gemm->run(weight, a_.data() + static_cast<std::size_t>(first * k_) * size_of(dtype_), count,
              c.data(), finish);
    c.resize(static_cast<std::size_t>(count * n_) * element);
    return c;
  }

  DType dtype_ = std::get<0>(GetParam());
  int n_ = std::get<1>(GetParam()).n;
  int k_ = std::get<1>(GetParam()).k;
  Random random_{13, dtype_};
  std::vector<double> values_ = random_.vector(3 * rows * k_, 0, 1);
  std::vector<double> weights_ = random_.vector(n_ * k_, 0, 1 / std::sqrt(k_));
  std::vector<std::byte> a_ = encode(values_, dtype_);
  std::vector<std::byte> w_ = encode(weights_, dtype_);
};

TEST_P(CpuGemm, AgreesWithTheOracle) {
  const auto single = decode(run(1, 0, 5, Finish::float32).data(), static_cast<std::size_t>(5 * n_),
                             DType::float32);
  const auto rounded =
      decode(run(1, 0, 5, Finish::rounded).data(), static_cast<std::size_t>(5 * n_), dtype_);
  const auto round = rounding_of(dtype_);
  for (int r = 0; r < 5; ++r) {
    for (int c = 0; c < n_; ++c) {
      double sum = 0;
      for (int i = 0; i < k_; ++i) {
        sum += values_[static_cast<std::size_t>(r * k_ + i)] *
               weights_[static_cast<std::size_t>(c * k_ + i)];
      }
      const auto at = static_cast<std::size_t>(r * n_ + c);
      EXPECT_NEAR(single[at], sum, 1e-5);
      EXPECT_EQ(rounded[at], round(single[at]));
    }
  }
}

TEST_P(CpuGemm, RowsDoNotDependOnTheirNumberPlaceOrThreads) {
  for (const auto finish : {Finish::rounded, Finish::float32}) {
    const auto all = run(1, 0, rows, finish);
    const std::size_t row_bytes = all.size() / rows;
    const auto expect_rows = [&](int threads, int first, int count) {
      const auto part = run(threads, first, count, finish);
      EXPECT_EQ(0,
                std::memcmp(part.data(), all.data() + static_cast<std::size_t>(first) * row_bytes,
                            part.size()))
          << count << " rows from " << first << ", " << threads << " threads";
    };
    for (const int threads : {1, 2}) {
      for (const int count : compute::row_classes) expect_rows(threads, 0, count);
      for (const int count : {1, 5, 31, 70, 127}) expect_rows(threads, 128 - count, count);
      const auto more = run(threads, 0, 200, finish);  // a second, partial tile
      EXPECT_EQ(0, std::memcmp(more.data(), all.data(), all.size()));
    }
  }
}

TEST_P(CpuGemm, FloatRunsWriteNothingBeyondTheirRows) {
  const auto gemm = compute::make_gemm(dtype_, 1);
  omp_set_num_threads(1);
  const auto weight = gemm->pack(w_.data(), n_, k_);
  gemm->prepare(weight, Finish::float32);
  for (const int count : {1, 5, 37, 129, 200}) {
    std::vector<float> c(static_cast<std::size_t>((count + 1) * n_), -7.0F);
    gemm->run(weight, a_.data(), count, c.data(), Finish::float32);
    for (int i = count * n_; i < (count + 1) * n_; ++i) {
      EXPECT_EQ(c[static_cast<std::size_t>(i)], -7.0F);
    }
    const auto padded = run(1, 0, std::min(count, 128), Finish::float32);
    EXPECT_EQ(0, std::memcmp(padded.data(), c.data(), padded.size()));
  }
}

TEST_P(CpuGemm, ProductsOverScatteredRowsAreWhatOneRunGives) {
  // Rows 0 to 199 as products of 1, 7, 128 and 64 rows; row i comes from and goes to place 199 - i.
  const std::vector<int> heights = {1, 7, 128, 64};
  constexpr int all = 200;
  const auto element = size_of(dtype_);
  const auto gate_values = random_.vector(n_ * k_, 0, 1 / std::sqrt(k_));
  const auto gate_bytes = encode(gate_values, dtype_);
  const auto start = random_.vector(all * n_, 0, 1);
  const auto& kernels = compute::kernels_for(dtype_, compute::cpu_isa());
  const auto at = [](auto& matrix, int row, int width, std::size_t size) {
    return matrix.data() + static_cast<std::size_t>(row * width) * size;
  };
  for (const int threads : {1, 3}) {
    omp_set_num_threads(threads);
    const auto gemm = compute::make_gemm(dtype_, threads);
    const auto weight = gemm->pack(w_.data(), n_, k_);
    const auto gate = gemm->pack(gate_bytes.data(), n_, k_);
    for (const auto finish : {Finish::rounded, Finish::add, Finish::gelu, Finish::swiglu}) {
      gemm->prepare(weight, finish);
      gemm->prepare(weight, Finish::float32);
      gemm->prepare(weight, Finish::rounded);
      std::vector<float> sums(static_cast<std::size_t>(256 * n_));
      gemm->run(finish == Finish::swiglu ? gate : weight, a_.data(), all, sums.data(),
                Finish::float32);
      std::vector<std::byte> wanted(static_cast<std::size_t>(256 * n_) * element);
      gemm->run(weight, a_.data(), all, wanted.data(), Finish::rounded);
      if (finish == Finish::gelu) kernels.gelu(sums.data(), wanted.data(), all * n_);
      if (finish == Finish::swiglu) {
        kernels.swiglu(sums.data(), wanted.data(), wanted.data(), all * n_);
      }
      const bool adds = finish == Finish::add;
      const auto before = encode(start, adds ? DType::float32 : dtype_);
      std::vector<std::byte> got = before;
      std::vector<const void*> in;
      std::vector<void*> out;
      for (int i = 0; i < all; ++i) {
        in.push_back(at(a_, all - 1 - i, k_, element));
        out.push_back(at(got, all - 1 - i, n_, adds ? sizeof(float) : element));
      }
      std::vector<compute::Product> products;
      std::size_t first = 0;
      for (const int height : heights) {
        products.push_back({&weight, finish == Finish::swiglu ? &gate : nullptr, finish, height,
                            in.data() + first, out.data() + first});
        first += static_cast<std::size_t>(height);
      }
      gemm->run(products);
      if (adds) {
        auto sum = before;
        kernels.add(reinterpret_cast<float*>(sum.data()), wanted.data(), all * n_);
        wanted = sum;
      }
      EXPECT_EQ(0, std::memcmp(got.data(), wanted.data(), got.size()))
          << "finish " << static_cast<int>(finish) << ", " << threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CpuGemm,
    ::testing::Combine(::testing::Values(DType::bfloat16, DType::float16, DType::float32),
                       ::testing::Values(Case{320, 192}, Case{16, 192}, Case{17, 33}, Case{20, 24},
                                         Case{1, 8}, Case{512, 1024}, Case{256, 2050})),
    [](const auto& shape) {
      const Case c = std::get<1>(shape.param);
      return std::string(name_of(std::get<0>(shape.param))) + "_" + std::to_string(c.n) + "x" +
             std::to_string(c.k);
    });

TEST(CpuGemmClasses, RoundUp) {
  EXPECT_EQ(compute::row_class_of(1), 1);
  EXPECT_EQ(compute::row_class_of(5), 6);
  EXPECT_EQ(compute::row_class_of(113), 128);
  EXPECT_EQ(compute::row_class_of(128), 128);
}

}  // namespace
}  // namespace atl::testing
