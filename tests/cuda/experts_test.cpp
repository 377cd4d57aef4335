// timeout: 120
// Experts' rows: gathered or not, and buffers for them that grow.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <utility>
#include <vector>

#include "tests/cuda/on_device.hpp"

namespace atl::testing {
namespace {

class CudaExperts : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
};

/// Where moving rows costs less than reading the weights again; by a kernel and by copies.
TEST_F(CudaExperts, ExpertsTakeLongAndShortRunsTogether) {
  auto shape = tiny_shape();
  shape.hidden = 8;
  shape.moe_intermediate = 3072;
  const auto model = random_model(shape, DType::bfloat16, 2);
  RankOptions options = on_cuda(DType::bfloat16);
  options.max_chunk_tokens = 600;
  const int total = 1100;
  const DeviceBytes in(
      encode(Random(1, DType::bfloat16).vector(total * shape.hidden, 0, 1), DType::bfloat16));
  std::vector<std::vector<std::byte>> results;
  for (const char* switched_off : {"", "ATOLL_CUDA_GATHER_BY_COST", "ATOLL_CUDA_GATHER_KERNEL"}) {
    if (*switched_off != '\0') setenv(switched_off, "0", 1);
    SingleRank rank(model, options);
    unsetenv(switched_off);
    DeviceBytes out(in.host().size());
    std::vector<compute::RowBlock> blocks;
    for (const auto& [first, count] : {std::pair{40, 1030}, {0, 30}, {1075, 25}}) {
      const std::size_t offset = static_cast<std::size_t>(first) * 8 * 2;
      blocks.push_back({2, count, in.get() + offset, out.get() + offset});
    }
    rank.finish(rank.backend().experts(rank.chunk(), 1, blocks));
    results.push_back(out.host());
  }
  EXPECT_EQ(results[1], results[0]);
  EXPECT_EQ(results[2], results[0]);
}

/// Peers may have mapped them.
TEST_F(CudaExperts, BuffersThatWereLentAreNotFreedWhenTheyGrow) {
  const auto is_there = [](const void* memory) {
    cudaPointerAttributes attributes{};
    const bool known = cudaPointerGetAttributes(&attributes, memory) == cudaSuccess;
    cudaGetLastError();
    return known && attributes.type == cudaMemoryTypeDevice;
  };
  for (const bool lent : {false, true}) {
    compute::BackendOptions options = tiny_options();
    options.receive_rows = 20;
    options.most_receive_rows = 2000;
    const auto backend = on_cuda(options.dtype).make_backend(options);
    if (lent) backend->device_memory()->lend();
    const auto chunk = backend->make_chunk();
    const auto bytes = backend->memory().buffers;
    const void* const received = chunk->dispatch_recv;
    chunk->reserve_receive(1500);
    EXPECT_EQ(is_there(received), lent);
    EXPECT_TRUE(is_there(chunk->dispatch_recv));
    const std::int64_t of_before = std::int64_t{2} * 20 * 48 * 2;
    EXPECT_GE(backend->memory().buffers, bytes + 2 * 1480 * 48 * 2 + (lent ? of_before : 0));
  }
}

}  // namespace
}  // namespace atl::testing
