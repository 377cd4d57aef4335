// The kernel of GEMMs over panels: every element is one chain of multiply-adds over k, to the bit,
// on every instruction set and in plain loops.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "compute/aligned_buffer.hpp"
#include "tests/compute/kernel_tables.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::AlignedBuffer;

class CpuPanels : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  void SetUp() override {
    kernels_ = kernel_table(std::get<0>(GetParam()), dtype_);
    if (kernels_ == nullptr) GTEST_SKIP() << "not on this CPU";
  }

  DType dtype_ = std::get<1>(GetParam());
  const compute::Kernels* kernels_ = nullptr;
  Random random_{7, dtype_};
};

/// c [rows, n] of panel_gemm() over rows that do not lie together.
std::vector<float> panel_product(const compute::Kernels& kernels,
                                 const std::vector<std::vector<std::byte>>& rows,
                                 const std::vector<std::byte>& weight, int n, int k) {
  const int columns = kernels.panel_columns;
  const int panels = (n + columns - 1) / columns;
  const int padded = (k + kernels.panel_step - 1) / kernels.panel_step * kernels.panel_step;
  const std::size_t element = weight.size() / static_cast<std::size_t>(n * k);
  const AlignedBuffer packed(static_cast<std::size_t>(panels * padded * columns) * element);
  for (int p = 0; p < panels; ++p) {
    kernels.pack_panel(
        weight.data(), n, k, p,
        packed.as<std::byte>() + static_cast<std::size_t>(p * padded * columns) * element);
  }
  std::vector<const void*> pointers;
  for (const auto& row : rows) pointers.push_back(row.data());
  const AlignedBuffer scratch(compute::panel_scratch_floats * sizeof(float));
  const auto stride = static_cast<std::size_t>(panels * columns);
  std::vector<float> c(rows.size() * stride, 99.0F);
  compute::PanelTask task;
  task.rows = pointers.data();
  task.num_rows = static_cast<int>(rows.size());
  task.k = k;
  task.panels = packed.data();
  task.num_panels = panels;
  task.c = c.data();
  task.c_stride = panels * columns;
  task.scratch = scratch.as<float>();
  kernels.panel_gemm(task);
  std::vector<float> result;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto row = c.begin() + static_cast<std::ptrdiff_t>(r * stride);
    result.insert(result.end(), row, row + n);
  }
  return result;
}

/// One chain of multiply-adds over k, which is what every element of panel_gemm() has to be. Pairs
/// of bfloat16 go second first, and numbers below the smallest normal one count as zero.
float chain(const std::vector<double>& row, const std::vector<double>& weight, bool pairs) {
  const auto flushed = [pairs](float x) {
    return pairs && std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x;
  };
  const auto add = [&](std::size_t i, float sum) {
    if (i >= row.size()) return sum;
    return flushed(
        std::fma(flushed(static_cast<float>(row[i])), flushed(static_cast<float>(weight[i])), sum));
  };
  float sum = 0;
  for (std::size_t i = 0; i < row.size(); i += 2) {
    sum = pairs ? add(i, add(i + 1, sum)) : add(i + 1, add(i, sum));
  }
  return sum;
}

TEST_P(CpuPanels, AreOneChainPerElementForAnyNumberOfRows) {
  for (const auto& [k, n] : {std::pair{3, 5}, {300, 16}, {520, 39}, {1100, 65}, {2121, 33}}) {
    const auto a = random_.matrix(compute::panel_gemm_rows, k);
    const auto w = random_.matrix(n, k);
    std::vector<std::vector<std::byte>> rows;
    for (const auto& row : a) rows.push_back(encode(row, dtype_));
    std::vector<std::byte> weight;
    for (const auto& row : w) {
      const auto bytes = encode(row, dtype_);
      weight.insert(weight.end(), bytes.begin(), bytes.end());
    }
    std::vector<float> wanted;
    for (const auto& row : a) {
      for (const auto& column : w) wanted.push_back(chain(row, column, kernels_->panel_step == 2));
    }
    for (int count = 1; count <= compute::panel_gemm_rows; count += count < 30 ? 1 : 7) {
      const std::vector some(rows.end() - count, rows.end());
      const auto got = panel_product(*kernels_, some, weight, n, k);
      ASSERT_TRUE(std::equal(got.begin(), got.end(), wanted.end() - count * n))
          << count << " rows, k " << k << ", n " << n;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, CpuPanels,
                         ::testing::Combine(::testing::ValuesIn(kernel_tables),
                                            ::testing::Values(DType::bfloat16, DType::float16,
                                                              DType::float32)),
                         [](const auto& table) { return table_name(table.param); });

}  // namespace
}  // namespace atl::testing
