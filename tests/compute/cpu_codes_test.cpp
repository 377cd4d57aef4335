// Weights kept as codes: products have the bits of those with the same weights unpacked, on every
// instruction set and in plain loops, for any number of rows.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

#include "compute/aligned_buffer.hpp"
#include "compute/coding.hpp"
#include "compute/convert.hpp"
#include "compute/loading.hpp"
#include "tests/compute/kernel_tables.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::AlignedBuffer;

/// A matrix of codes with every code in it, where it is large enough.
struct Coded {
  Coding coding;
  DType dtype;  ///< of its elements
  int n;
  int k;
  std::vector<std::byte> codes;
  std::vector<std::byte> scales;

  HostTensor tensor() const { return {codes.data(), dtype, n, k, coding, scales.data()}; }
};

/// Deterministic bits that look like none.
std::uint32_t scrambled(std::uint32_t x) {
  x = (x ^ 61U) ^ (x >> 16U);
  x *= 9U;
  x ^= x >> 4U;
  x *= 0x27d4eb2dU;
  return x ^ (x >> 15U);
}

Coded coded(Code code, int group, DType dtype, int n, int k, bool with_nan) {
  Coded matrix{{code, group}, dtype, n, k, {}, {}};
  matrix.codes.resize(static_cast<std::size_t>(n * matrix.coding.row_bytes(k)));
  for (std::size_t i = 0; i < matrix.codes.size(); ++i) {
    auto byte = static_cast<std::uint8_t>(scrambled(static_cast<std::uint32_t>(i)));
    if (code == Code::fp8 && !with_nan && (byte & 127U) == 127U) byte ^= 1U;
    matrix.codes[i] = std::byte{byte};
  }
  const auto count = static_cast<std::size_t>(n * matrix.coding.groups(k));
  matrix.scales.resize(count * static_cast<std::size_t>(matrix.coding.scale_bytes()));
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t bits = scrambled(static_cast<std::uint32_t>(i) + 77U);
    if (code == Code::mxfp4) {
      matrix.scales[i] = std::byte{static_cast<std::uint8_t>(120U + bits % 12U)};
      if (i == 5) matrix.scales[i] = std::byte{0};
    } else {
      const float scale = std::ldexp(1.0F + static_cast<float>(bits % 8191U) / 8192.0F,
                                     -static_cast<int>(bits % 7U) - 5);
      std::memcpy(matrix.scales.data() + i * 4, &scale, 4);
    }
  }
  return matrix;
}

/// c [rows, n] of panel_gemm() with `task`, whose panels are there.
std::vector<float> product(const compute::Kernels& kernels, compute::PanelTask task,
                           const std::vector<std::vector<std::byte>>& rows, int n) {
  std::vector<const void*> pointers;
  for (const auto& row : rows) pointers.push_back(row.data());
  const AlignedBuffer scratch(compute::panel_scratch_floats * sizeof(float));
  task.rows = pointers.data();
  task.num_rows = static_cast<int>(rows.size());
  task.num_panels = (n + kernels.panel_columns - 1) / kernels.panel_columns;
  task.c_stride = task.num_panels * kernels.panel_columns;
  std::vector<float> c(rows.size() * static_cast<std::size_t>(task.c_stride), 99.0F);
  task.c = c.data();
  task.scratch = scratch.as<float>();
  kernels.panel_gemm(task);
  std::vector<float> result;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto row = c.begin() + static_cast<std::ptrdiff_t>(r) * task.c_stride;
    result.insert(result.end(), row, row + n);
  }
  return result;
}

class CpuCodes : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  void SetUp() override {
    kernels_ = kernel_table(std::get<0>(GetParam()), dtype_);
    if (kernels_ == nullptr) GTEST_SKIP() << "not on this CPU";
  }

  std::vector<std::vector<std::byte>> rows(int count, int k) {
    std::vector<std::vector<std::byte>> all;
    for (const auto& row : random_.matrix(count, k)) all.push_back(encode(row, dtype_));
    return all;
  }

  std::vector<float> unpacked_product(const Coded& w,
                                      const std::vector<std::vector<std::byte>>& a) {
    AlignedBuffer elements;
    const void* weight = compute::converted(w.tensor(), dtype_, elements);
    const int columns = kernels_->panel_columns;
    const int panels = (w.n + columns - 1) / columns;
    const int padded =
        (w.k + kernels_->panel_step - 1) / kernels_->panel_step * kernels_->panel_step;
    const std::size_t panel = static_cast<std::size_t>(padded * columns) * size_of(dtype_);
    const AlignedBuffer packed(static_cast<std::size_t>(panels) * panel);
    for (int p = 0; p < panels; ++p) {
      kernels_->pack_panel(weight, w.n, w.k, p,
                           packed.as<std::byte>() + static_cast<std::size_t>(p) * panel);
    }
    compute::PanelTask task;
    task.k = w.k;
    task.panels = packed.data();
    return product(*kernels_, task, a, w.n);
  }

  std::vector<float> coded_product(const Coded& w, const std::vector<std::vector<std::byte>>& a) {
    const std::int64_t panel = compute::coded_panel_bytes(w.coding, w.k, *kernels_);
    const int panels = (w.n + kernels_->panel_columns - 1) / kernels_->panel_columns;
    const AlignedBuffer packed(static_cast<std::size_t>(panels * panel));
    compute::PanelTask task;
    for (int p = 0; p < panels; ++p) {
      if (kernels_->pack_codes(w.tensor(), p, packed.as<std::byte>() + p * panel)) {
        task.special = true;
      }
    }
    EXPECT_EQ(packed.as<std::uint8_t>()[panels * panel], 0) << "written beyond the last panel";
    task.k = w.k;
    task.panels = packed.data();
    task.coding = w.coding;
    task.rounded = w.dtype;
    return product(*kernels_, task, a, w.n);
  }

  void expect_same(const Coded& w, int most_rows) {
    const auto all = rows(most_rows, w.k);
    for (int count = 1; count <= most_rows; count += count < 14 ? 1 : 39) {
      const std::vector some(all.end() - count, all.end());
      const std::vector<float> wanted = unpacked_product(w, some);
      const std::vector<float> got = coded_product(w, some);
      const bool same = std::equal(got.begin(), got.end(), wanted.begin(), [](float a, float b) {
        return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
               (std::isnan(a) && std::isnan(b));
      });
      ASSERT_TRUE(same) << name_of(w.coding.code) << " in groups of " << w.coding.group << " of "
                        << name_of(w.dtype) << ", n " << w.n << ", k " << w.k << ", " << count
                        << " rows";
    }
  }

  DType dtype_ = std::get<1>(GetParam());
  const compute::Kernels* kernels_ = nullptr;
  Random random_{7, dtype_};
};

TEST_P(CpuCodes, MultiplyAsTheirElements) {
  for (const Code code : {Code::fp8, Code::mxfp4, Code::int4}) {
    for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
      expect_same(coded(code, 128, dtype, 39, 288, false), 5);
      expect_same(coded(code, 32, dtype, 130, 96, false), 2);
      expect_same(coded(code, 6, dtype, 5, 21, false), 2);
    }
  }
  expect_same(coded(Code::fp8, 128, DType::bfloat16, 39, 1161, false), 13);
  expect_same(coded(Code::int4, 32, DType::bfloat16, 33, 576, false), 53);
}

/// As published: a scale for each block of rows and columns, where columns of a panel have one.
TEST_P(CpuCodes, MultiplyAsTheirElementsWithScalesOfBlocks) {
  for (const bool with_nan : {false, true}) {
    Coded w = coded(Code::fp8, 128, DType::bfloat16, 150, 300, with_nan);
    const std::int64_t groups = w.coding.groups(w.k);
    for (int row = 0; row < w.n; ++row) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const float scale = g == 1 ? -0.0071F : 0.013F + static_cast<float>(row / 128);
        std::memcpy(w.scales.data() + (row * groups + g) * 4, &scale, 4);
      }
    }
    expect_same(w, 14);
  }
}

TEST_P(CpuCodes, StayNanAndInfinite) {
  expect_same(coded(Code::fp8, 128, DType::bfloat16, 39, 300, true), 3);
  Coded huge = coded(Code::fp8, 16, DType::bfloat16, 40, 64, false);
  for (std::size_t i = 0; i < huge.scales.size() / 4; i += 9) {
    const float scale = i % 2 == 0 ? 0x1p120F : INFINITY;
    std::memcpy(huge.scales.data() + i * 4, &scale, 4);
  }
  expect_same(huge, 3);
}

INSTANTIATE_TEST_SUITE_P(Tables, CpuCodes,
                         ::testing::Combine(::testing::ValuesIn(kernel_tables),
                                            ::testing::Values(DType::bfloat16, DType::float16,
                                                              DType::float32)),
                         [](const auto& table) { return table_name(table.param); });

TEST(Codes, HaveTheirNumbers) {
  EXPECT_EQ(compute::fp8_e4m3(0x38), 1);
  EXPECT_EQ(compute::fp8_e4m3(0x7e), 448);
  EXPECT_EQ(compute::fp8_e4m3(0xfe), -448);
  EXPECT_EQ(compute::fp8_e4m3(0x01), std::ldexp(1.0F, -9));
  EXPECT_EQ(compute::fp8_e4m3(0x08), std::ldexp(1.0F, -6));
  EXPECT_TRUE(std::isnan(compute::fp8_e4m3(0x7f)) && std::isnan(compute::fp8_e4m3(0xff)));
  const std::byte two[1] = {std::byte{0xe3}};
  EXPECT_EQ(compute::number_at(Code::mxfp4, two, 0), 1.5F);
  EXPECT_EQ(compute::number_at(Code::mxfp4, two, 1), -4.0F);
  EXPECT_EQ(compute::number_at(Code::int4, two, 0), -5.0F);
  EXPECT_EQ(compute::number_at(Code::int4, two, 1), 6.0F);
  const std::byte exponents[2] = {std::byte{128}, std::byte{0}};
  EXPECT_EQ(compute::scale_at(Code::mxfp4, exponents, 0), 2.0F);
  EXPECT_EQ(compute::scale_at(Code::mxfp4, exponents, 1), std::ldexp(1.0F, -127));
}

}  // namespace
}  // namespace atl::testing
