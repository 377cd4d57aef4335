// Every kernel of every instruction set this CPU has, and of AVX-512 in plain loops, against the
// oracle's functions.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/memory.hpp"
#include "tests/compute/kernel_tables.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::AlignedBuffer;

class CpuKernels : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  void SetUp() override {
    kernels_ = kernel_table(std::get<0>(GetParam()), dtype_);
    if (kernels_ == nullptr) GTEST_SKIP() << "not on this CPU";
  }

  /// `values` as elements of the kernel's type, with `bytes_of` their size.
  std::vector<std::byte> encoded(const std::vector<double>& values) const {
    return encode(values, dtype_);
  }
  std::vector<double> decoded(const std::vector<std::byte>& bytes) const {
    return decode(bytes.data(), bytes.size() / size_of(dtype_), dtype_);
  }
  std::vector<std::byte> space(std::size_t count) const {
    return std::vector<std::byte>(count * size_of(dtype_));
  }
  /// Half a unit in the last place of the type, and what float32 arithmetic adds.
  double tolerance(double value) const {
    const double relative = dtype_ == DType::bfloat16  ? 1.0 / 256
                            : dtype_ == DType::float16 ? 1.0 / 2048
                                                       : 0;
    return std::abs(value) * (relative + 2e-6) + 2e-6;
  }
  void expect_close(const std::vector<double>& got, const std::vector<double>& wanted) const {
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], wanted[i], tolerance(wanted[i])) << "element " << i;
    }
  }
  /// Experts and weights of softmax scores.
  void choose(std::vector<float>& logits, int top_k, bool normalise,
              std::vector<std::int32_t>& experts, std::vector<float>& weights) const {
    const Router router;
    compute::ChooseArgs args;
    args.router = &router;
    args.normalise = normalise;
    args.num_experts = static_cast<int>(logits.size());
    args.top_k = top_k;
    args.logits = logits.data();
    args.experts = experts.data();
    args.weights = weights.data();
    kernels_->choose(args);
  }
  static std::vector<float> floats(const std::vector<double>& values) {
    return {values.begin(), values.end()};
  }

  DType dtype_ = std::get<1>(GetParam());
  const compute::Kernels* kernels_ = nullptr;
  Random random_{7, dtype_};
};

constexpr std::array<int, 9> sizes = {1, 2, 7, 8, 15, 16, 33, 64, 129};

TEST_P(CpuKernels, RmsNorm) {
  for (const int width : sizes) {
    const auto x = random_.vector(3 * width, 0.2, 2);
    const auto weight = random_.vector(width, 1, 0.2);
    auto out = space(x.size());
    kernels_->rms_norm(floats(x).data(), floats(weight).data(), 1e-5F, out.data(), 3, width);
    std::vector<double> wanted;
    for (int r = 0; r < 3; ++r) {
      const auto row =
          reference::rms_norm({x.begin() + r * width, x.begin() + (r + 1) * width}, weight, 1e-5F);
      wanted.insert(wanted.end(), row.begin(), row.end());
    }
    expect_close(decoded(out), wanted);
  }
}

TEST_P(CpuKernels, NormOfSquaresThatOverflowIsNaNInItsRowAlone) {
  auto x = random_.vector(3 * 40, 0, 2);
  x[40 + 7] = 1e25;
  auto out = space(x.size());
  const std::vector<float> weight(40, 1.0F);
  kernels_->rms_norm(floats(x).data(), weight.data(), 1e-5F, out.data(), 3, 40);
  const auto got = decoded(out);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i / 40 == 1) << i;
}

TEST_P(CpuKernels, Activations) {
  for (const int count : sizes) {
    const auto up = random_.vector(count, 0, 4);
    const auto gate = random_.vector(count, 0, 4);
    auto out = space(up.size());
    kernels_->gelu(floats(up).data(), out.data(), count);
    std::vector<double> wanted;
    for (const double u : up) {
      wanted.push_back(
          reference::mlp({{{1}}, {}, {{1}}}, {u}, Activation::gelu_tanh, reference::exact)[0]);
    }
    expect_close(decoded(out), wanted);
    kernels_->swiglu(floats(gate).data(), encoded(up).data(), out.data(), count);
    for (std::size_t i = 0; i < up.size(); ++i) {
      wanted[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
    expect_close(decoded(out), wanted);
  }
}

TEST_P(CpuKernels, ActivationsOfLargeValuesStayFinite) {
  const std::vector<float> extremes = {-1e4F, -100, -90, -20, -0.0F, 0, 20, 90, 100, 1e4F};
  const auto count = static_cast<std::int64_t>(extremes.size());
  auto out = space(extremes.size());
  kernels_->gelu(extremes.data(), out.data(), count);
  std::vector<double> wanted;
  for (const double x : extremes) wanted.push_back(std::max(x, 0.0));
  expect_close(decoded(out), wanted);
  kernels_->swiglu(extremes.data(), encoded(std::vector<double>(10, 1.0)).data(), out.data(),
                   count);
  expect_close(decoded(out), wanted);
}

TEST_P(CpuKernels, AddIsFloat32sAndConversionsRoundToNearestEven) {
  const auto round = rounding_of(dtype_);
  for (const int count : sizes) {
    const auto x = random_.vector(count, 0, 1);
    const auto y = random_.vector(count, 0, 30);
    std::vector<float> sum = floats(x);
    for (float& value : sum) value *= 1.2345F;  // more digits than the type has
    std::vector<float> exact = sum;
    kernels_->add(sum.data(), encoded(y).data(), count);
    for (std::size_t i = 0; i < x.size(); ++i) exact[i] += static_cast<float>(y[i]);
    EXPECT_EQ(sum, exact);

    auto wanted = x;
    exact = floats(x);
    for (float& value : exact) value *= 1.2345F;
    auto converted = space(exact.size());
    kernels_->from_float(exact.data(), converted.data(), count);
    for (std::size_t i = 0; i < exact.size(); ++i) wanted[i] = round(exact[i]);
    EXPECT_EQ(decoded(converted), wanted);
    kernels_->to_float(converted.data(), exact.data(), count);
    EXPECT_EQ(std::vector<double>(exact.begin(), exact.end()), wanted);
  }
}

TEST_P(CpuKernels, TopKOfTheSoftmaxWithTies) {
  for (const int experts : {1, 5, 16, 37, 64}) {
    for (const bool renormalise : {false, true}) {
      ModelShape shape;
      shape.top_k = std::min(experts, 4);
      shape.norm_topk_prob = renormalise;
      reference::Matrix router;
      for (int e = 0; e < experts; ++e) router.push_back({static_cast<double>(e * 7 % 5)});
      const auto wanted = reference::route(router, {1.0}, shape);
      std::vector<float> logits;
      for (const auto& row : router) logits.push_back(static_cast<float>(row[0]));
      std::vector<std::int32_t> chosen(4);
      std::vector<float> weights(4);
      choose(logits, shape.top_k, renormalise, chosen, weights);
      for (std::size_t j = 0; j < wanted.size(); ++j) {
        EXPECT_EQ(chosen[j], wanted[j].expert);
        EXPECT_NEAR(weights[j], wanted[j].weight, 1e-6);
      }
    }
  }
}

TEST_P(CpuKernels, MergeAddsInTheGivenOrderAndRoundsTheSum) {
  const auto round = rounding_of(dtype_);
  const int width = 21;
  const auto rows = random_.matrix(4, width, 5);
  const auto x = random_.vector(width, 0, 1);
  std::vector<double> flat;
  for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  const std::vector<std::int32_t> slots = {3, 0, 2};
  const std::vector<float> weights = {0.5F, 0.375F, 0.125F};
  std::vector<float> start = floats(x);
  for (float& value : start) value *= 1.2345F;  // more digits than the type has
  std::vector<float> got = start;
  kernels_->merge(got.data(), encoded(flat).data(), slots.data(), weights.data(), 3, width);
  for (std::size_t i = 0; i < got.size(); ++i) {
    float sum = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      sum = std::fma(weights[j], static_cast<float>(rows[static_cast<std::size_t>(slots[j])][i]),
                     sum);
    }
    EXPECT_EQ(got[i], start[i] + static_cast<float>(round(sum)));
  }
}

TEST_P(CpuKernels, LogProb) {
  for (const int count : {1, 2, 15, 16, 17, 256, 1001}) {
    const auto logits = random_.vector(count, 50, 10);
    double sum = 0;
    for (const double value : logits) sum += std::exp(value);
    const int target = count / 2;
    EXPECT_NEAR(kernels_->log_prob(floats(logits).data(), count, target),
                logits[static_cast<std::size_t>(target)] - std::log(sum), 2e-5);
  }
}

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

TEST_P(CpuKernels, TopKChoosesDifferentExpertsWhateverTheLogits) {
  for (const int experts : {2, 5, 16, 37}) {
    for (const float bad : {not_a_number, -not_a_number, infinite, -infinite}) {
      for (int at = 0; at < experts; ++at) {
        auto logits = floats(random_.vector(experts, 0, 3));
        logits[static_cast<std::size_t>(at)] = bad;
        const int top_k = std::min(experts - 1, 4);
        std::vector<std::int32_t> chosen(4, -1);
        std::vector<float> weights(4);
        choose(logits, top_k, true, chosen, weights);
        for (int j = 0; j < top_k; ++j) {
          const auto expert = chosen[static_cast<std::size_t>(j)];
          const bool known = bad == -infinite;
          EXPECT_EQ(std::isfinite(weights[static_cast<std::size_t>(j)]), known);
          if (known) {
            EXPECT_TRUE(expert >= 0 && expert < experts && expert != at);
            EXPECT_EQ(std::count(chosen.begin(), chosen.begin() + top_k, expert), 1);
          } else {
            EXPECT_EQ(expert, j);
          }
        }
      }
    }
  }
}

TEST_P(CpuKernels, LogProbIsNaNWhereALogitIsNotFinite) {
  for (const int count : {1, 2, 15, 16, 17, 100}) {
    for (const float bad : {not_a_number, infinite, -infinite}) {
      for (int at = 0; at < count; ++at) {
        auto logits = floats(random_.vector(count, 0, 10));
        logits[static_cast<std::size_t>(at)] = bad;
        EXPECT_TRUE(std::isnan(kernels_->log_prob(logits.data(), count, count / 2)))
            << bad << " at " << at << " of " << count;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, CpuKernels,
                         ::testing::Combine(::testing::ValuesIn(kernel_tables),
                                            ::testing::Values(DType::bfloat16, DType::float16,
                                                              DType::float32)),
                         [](const auto& table) { return table_name(table.param); });

}  // namespace
}  // namespace atl::testing
