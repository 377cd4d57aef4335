// Products of warpgroups on the emulated device: they are right, in either order in which they may
// run, and what breaks the rules of the instructions is noticed.

#include "compute/cuda/kernels/wgmma.cuh"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <vector>

namespace {

using namespace atl::compute::cuda;

constexpr int lines = 64;
constexpr int columns = 128;

/// What a kernel leaves out or does too late.
enum class Fault { none, no_begin, no_fence, no_wait, early_read, early_write, other_group };

struct alignas(tile_alignment) Shared {
  __nv_bfloat16 right[lines * columns];
};

float left_number(int row, int k) {
  return static_cast<float>((row * 5 + k * 3) % 41 - 20);
}
float right_number(int k, int column) {
  return static_cast<float>((k * 7 + column * 11) % 53 - 26);
}

void fill(Shared& shared, float factor) {
  for (int i = static_cast<int>(threadIdx.x); i < lines * columns; i += group_threads) {
    __nv_bfloat16* to = shared.right + tile_offset(i / columns, i % columns, lines);
    *to = __float2bfloat16_rn(factor * right_number(i / columns, i % columns));
    note_shared_write(to, sizeof *to);
  }
}

/// out [64, 128] = A [64, 64] B [64, 128], and twice that where the fault lets it.
__global__ void product(Fault fault, float* out) {
  auto& shared = *tiles_in_shared<Shared>();
  const int thread = static_cast<int>(threadIdx.x);
  fill(shared, 1);
  if (fault != Fault::no_fence) fence_for_products();
  __syncthreads();
  float d[columns / 2] = {};
  std::uint32_t a[lines / product_depth][4];
  for (int k = 0; k < lines / product_depth; ++k) {
    for (int w = 0; w < 4; ++w) {
      const int row = left_row(thread, w);
      const int first = k * product_depth + left_depth(thread, w);
      const float pair[2] = {left_number(row, first), left_number(row, first + 1)};
      a[k][w] = pack_word<__nv_bfloat16>(pair);
    }
  }
  if (fault != Fault::no_begin) begin_products();
  const std::uint64_t right = describe_tiles(shared.right, lines * line_bytes);
  for (int k = 0; k < lines / product_depth; ++k) {
    multiply<__nv_bfloat16, Lines::depth>(
        d, a[k], moved(right, static_cast<unsigned>(k * product_depth * line_bytes)), k > 0);
  }
  if (fault == Fault::other_group && thread < warp_lanes) {
    multiply<__nv_bfloat16, Lines::depth>(d, a[0], right, true);
  }
  commit_products();
  if (fault == Fault::early_write) {
    fill(shared, 2);
    fence_for_products();
    __syncthreads();
  }
  if (fault != Fault::early_read && fault != Fault::no_wait) wait_products<0>();
  for (int i = 0; i < columns / 2; ++i) {
    out[sum_row(thread, i) * columns + sum_column(thread, i)] = d[i];
  }
  if (fault == Fault::early_read) wait_products<0>();
}

/// Runs the kernel once; the number of wrong elements.
int count_wrong(Fault fault) {
  float* out = nullptr;
  EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&out), lines * columns * sizeof(float)),
            cudaSuccess);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(group_threads);
  config.dynamicSmemBytes = sizeof(Shared);
  EXPECT_EQ(cudaLaunchKernelEx(&config, product, fault, out), cudaSuccess);
  std::vector<float> found(lines * columns);
  EXPECT_EQ(cudaMemcpy(found.data(), out, found.size() * sizeof(float), cudaMemcpyDeviceToHost),
            cudaSuccess);
  EXPECT_EQ(cudaFree(out), cudaSuccess);
  int wrong = 0;
  for (int row = 0; row < lines; ++row) {
    for (int column = 0; column < columns; ++column) {
      float sum = 0;
      for (int k = 0; k < lines; ++k) sum += left_number(row, k) * right_number(k, column);
      if (found[static_cast<std::size_t>(row * columns + column)] != sum) ++wrong;
    }
  }
  return wrong;
}

constexpr int tries = 20;  // each with an order of its own

TEST(EmulatedWgmma, ProductsAreRight) {
  for (int i = 0; i < tries; ++i) EXPECT_EQ(count_wrong(Fault::none), 0);
}

TEST(EmulatedWgmma, ReadingTooEarlyShows) {
  int wrong = 0;
  for (int i = 0; i < tries; ++i) wrong += count_wrong(Fault::early_read);
  EXPECT_GT(wrong, 0);
}

TEST(EmulatedWgmma, OverwritingTooEarlyShows) {
  int wrong = 0;
  for (int i = 0; i < tries; ++i) wrong += count_wrong(Fault::early_write);
  EXPECT_GT(wrong, 0);
}

TEST(EmulatedWgmmaDeathTest, BrokenRulesAreNoticed) {
  EXPECT_DEATH(count_wrong(Fault::no_begin), "not preceded by begin_products");
  EXPECT_DEATH(count_wrong(Fault::no_fence), "without a fence for products");
  EXPECT_DEATH(count_wrong(Fault::other_group), "issue different products");
  EXPECT_DEATH(
      {
        for (int i = 0; i < tries; ++i) count_wrong(Fault::no_wait);
      },
      "products that it did not wait for");
}

}  // namespace
