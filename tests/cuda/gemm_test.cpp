// timeout: 300
// GEMMs by cuBLASLt: an element has the same bits whatever the number of rows that come together
// and of columns that are computed here. On a GPU at the sizes of models, on an emulated device
// small.

#include "compute/cuda/gemm.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "compute/cuda/backend.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/error.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/random_values.hpp"

namespace atl::testing {
namespace {

using compute::cuda::CudaGemm;
using compute::cuda::DeviceBuffer;
using compute::cuda::Stream;
using Output = CudaGemm::Output;

class CudaGemms : public ::testing::Test {
 protected:
  void SetUp() override {
    skip_without_device();
    if (!IsSkipped()) emulated = compute::open_cuda_device(0).name.starts_with("Emulated");
  }
  bool emulated = false;
};

/// [rows, k] of ordinary numbers; rows repeat after a while, as those of a large matrix may.
DeviceBytes matrix(int rows, int k, DType dtype, unsigned seed, float scale) {
  const int differing = std::min(rows, 512);
  const auto base = encode(Random(seed, dtype).vector(differing * k, 0, scale), dtype);
  std::vector<std::byte> all;
  for (int row = 0; row < rows; row += differing) {
    const auto count = static_cast<std::size_t>(std::min(differing, rows - row)) *
                       static_cast<std::size_t>(k) * size_of(dtype);
    all.insert(all.end(), base.begin(), base.begin() + static_cast<std::ptrdiff_t>(count));
  }
  return DeviceBytes(all);
}

struct Product {
  int n;
  int k;
  Output output;
};

/// A CudaGemm with what it works on.
struct Gemms {
  explicit Gemms(DType dtype)
      : workspace(compute::cuda::gemm_workspace_bytes, "a test"), gemm(dtype, workspace.data()) {}
  DeviceBuffer workspace;
  Stream stream;
  CudaGemm gemm;

  std::vector<std::byte> run(CudaGemm::Kind kind, const DeviceBytes& weight, const DeviceBytes& in,
                             int rows, std::size_t out_bytes) {
    DeviceBytes out(out_bytes);
    gemm.run(stream, kind, weight.get(), in.get(), rows, out.get());
    expect_success(cudaStreamSynchronize(stream.raw()));
    return out.host();
  }
};

std::size_t bytes_of(Output output, DType dtype) {
  return output == Output::float32 ? 4 : size_of(dtype);
}

/// Rows of all classes of row counts have the bits that they have together.
void expect_rows_apart(const std::vector<Product>& products, const std::vector<int>& counts,
                       DType dtype) {
  for (const Product& p : products) {
    const int most = counts.back();
    const auto weight = matrix(p.n, p.k, dtype, 3, 1 / std::sqrt(static_cast<float>(p.k)));
    const auto in = matrix(most, p.k, dtype, 4, 1);
    Gemms gemms(dtype);
    const auto kind = gemms.gemm.add(p.n, p.k, p.output, most, weight.get());
    gemms.gemm.prepare(gemms.stream);
    if (!gemms.gemm.keeps_bits(kind)) {
      EXPECT_NE(gemms.gemm.row_dependent_kinds(), "") << "it is told that results depend on rows";
      EXPECT_EQ(p.output, Output::gelu) << p.n << " x " << p.k << ": no algorithm keeps its bits";
      continue;
    }
    const std::size_t row_bytes = static_cast<std::size_t>(p.n) * bytes_of(p.output, dtype);
    const auto whole =
        gemms.run(kind, weight, in, most, static_cast<std::size_t>(most) * row_bytes);
    for (const int rows : counts) {
      const auto bytes = static_cast<std::size_t>(rows) * row_bytes;
      const auto some = gemms.run(kind, weight, in, rows, bytes);
      EXPECT_EQ(std::memcmp(some.data(), whole.data(), bytes), 0)
          << rows << " rows of " << p.n << " x " << p.k << ", " << name_of(dtype);
    }
    EXPECT_EQ(gemms.gemm.num_replaced(), 0);
  }
}

TEST_F(CudaGemms, RowsHaveTheSameBitsWhateverTheirNumber) {
  using enum Output;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    if (emulated) {
      // Much GELU and little of a sum: an algorithm with another GELU is the fastest one.
      expect_rows_apart({{512, 32, gelu}, {96, 80, activation}, {24, 48, float32}},
                        {1, 3, 7, 20, 64, 100, 500}, dtype);
    } else {
      // moe-16l's, and the narrow ones of moe-61l.
      expect_rows_apart({{12288, 4096, activation},
                         {4096, 4096, activation},
                         {16384, 4096, gelu},
                         {16384, 4096, float32},
                         {4096, 16384, activation},
                         {16, 4096, float32},
                         {2048, 7168, gelu},
                         {7168, 2048, activation}},
                        {1, 7, 64, 500, 2048, 4096}, dtype);
    }
  }
}

/// As they have when ranks share the columns of a product, however many these ranks are.
TEST_F(CudaGemms, ColumnsHaveTheSameBitsWhateverTheirNumber) {
  const int n = emulated ? 1280 : 12288;
  const int k = emulated ? 80 : 4096;
  const int rows = emulated ? 70 : 300;
  const DType dtype = DType::bfloat16;
  for (const Output output : {Output::activation, Output::float32, Output::gelu}) {
    const auto weight = matrix(n, k, dtype, 3, 1 / std::sqrt(static_cast<float>(k)));
    const auto in = matrix(rows, k, dtype, 4, 1);
    const std::size_t element = bytes_of(output, dtype);
    Gemms gemms(dtype);
    std::vector<CudaGemm::Kind> kinds;
    const std::vector<int> parts = {n, n / 2, n / 16, 16};
    for (const int part : parts) {
      kinds.push_back(gemms.gemm.add(part, k, output, rows, weight.get(), n));
    }
    gemms.gemm.prepare(gemms.stream);
    const auto whole =
        gemms.run(kinds[0], weight, in, rows,
                  static_cast<std::size_t>(rows) * static_cast<std::size_t>(n) * element);
    for (std::size_t i = 1; i < parts.size(); ++i) {
      if (!emulated && !gemms.gemm.keeps_bits(kinds[i])) continue;  // it is told
      ASSERT_TRUE(gemms.gemm.keeps_bits(kinds[i])) << parts[i] << " of " << n << " columns";
      const std::size_t width = static_cast<std::size_t>(parts[i]) * element;
      const auto some =
          gemms.run(kinds[i], weight, in, rows, static_cast<std::size_t>(rows) * width);
      for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
        ASSERT_EQ(std::memcmp(some.data() + r * width,
                              whole.data() + r * static_cast<std::size_t>(n) * element, width),
                  0)
            << parts[i] << " of " << n << " columns, row " << r;
      }
    }
  }
}

/// Of an emulated device it is known: the first of its algorithms has an exact one.
TEST_F(CudaGemms, AnExactGeluIsTaken) {
  Gemms gemms(DType::bfloat16);
  const bool accurate = gemms.gemm.gelu_is_accurate(48, gemms.stream);
  EXPECT_TRUE(accurate || !emulated);
}

/// Where there is no room for weights that are made up, algorithms are tried with the kind's own.
TEST_F(CudaGemms, AreTriedWithTheirOwnWeightsWhereMemoryIsShort) {
  if (!emulated) GTEST_SKIP() << "SKIPPED: other programs may use this device's memory";
  const int n = 16384;
  const int k = 512;
  const auto weight = matrix(n, k, DType::bfloat16, 3, 0.05F);
  Gemms gemms(DType::bfloat16);
  const auto kind = gemms.gemm.add(n, k, Output::activation, 128, weight.get());
  std::size_t free = 0;
  std::size_t total = 0;
  expect_success(cudaMemGetInfo(&free, &total));
  const DeviceBuffer taken(free - (std::size_t{14} << 20), "what others hold");  // its own: 16 MiB
  gemms.gemm.prepare(gemms.stream);
  EXPECT_TRUE(gemms.gemm.keeps_bits(kind));
}

}  // namespace
}  // namespace atl::testing
