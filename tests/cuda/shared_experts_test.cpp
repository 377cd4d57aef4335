// timeout: 240
// Experts of the CUDA backend that several ranks share, against a rank alone.

#include "tests/compute/shared_experts.hpp"

#include "compute/cuda/backend.hpp"
#include "compute/memory_plan.hpp"
#include "tests/cuda/on_device.hpp"

namespace atl::testing {
namespace {

class CudaSharedExperts : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
};

TEST_F(CudaSharedExperts, SameBitsHoweverManyShareThem) {
  ModelShape shape = tiny_shape();
  for (const Activation activation : {Activation::swiglu, Activation::gelu_tanh}) {
    shape.activation = activation;
    for (const DType dtype : {DType::bfloat16, DType::float32}) {
      expect_same_experts(shape, on_cuda(dtype), {2, 4}, copy_on_device);
    }
  }
  shape.hidden = 33;
  shape.moe_intermediate = 21;
  expect_same_experts(shape, on_cuda(DType::bfloat16), {3}, copy_on_device);
}

TEST_F(CudaSharedExperts, HoldWhatIsPlanned) {
  compute::BackendOptions options = tiny_options();
  options.part.expert_share = compute::share_experts(options.shape, 4, 1);
  options.expert_room = {90, 20};
  options.split_experts = true;
  const auto plan = compute::cuda_memory_plan(options);
  const auto backend = on_cuda(options.dtype).make_backend(options);
  const auto chunk = backend->make_chunk();
  EXPECT_EQ(backend->memory().weights, plan.weights);
  EXPECT_EQ(backend->memory().buffers, plan.buffers());
  const void* const rows = chunk->expert_rows;
  chunk->reserve_experts({90, 20});
  EXPECT_EQ(chunk->expert_rows, rows);
  chunk->reserve_experts({91, 20});
  EXPECT_GT(backend->memory().buffers, plan.buffers() + 90 * 48 * 2);
}

}  // namespace
}  // namespace atl::testing
