// timeout: 480
// Attention of the CUDA backend that several ranks share, against a rank alone.

#include "tests/compute/shared_attention.hpp"

#include <cstdlib>

#include "compute/cuda/backend.hpp"
#include "compute/error.hpp"
#include "compute/memory_plan.hpp"
#include "tests/cuda/on_device.hpp"

namespace atl::testing {
namespace {

bool all_sweeps() {
  const char* all = std::getenv("ATOLL_ALL");
  return all != nullptr && *all != '\0';
}

class CudaSharedAttention : public ::testing::TestWithParam<ModelKind> {
 protected:
  void SetUp() override { skip_without_device(); }
};

/// One number of members for each shape: these share a KV head, have several, or unequal groups.
/// With ATOLL_ALL more numbers, and all shapes in float32, which the emulated device is slow at.
TEST_P(CudaSharedAttention, SameBitsHoweverManyShareIt) {
  const bool all = all_sweeps();
  const std::vector<int> most = {GetParam().shape.num_heads == 8 ? 4 : 3};
  const std::vector<int> numbers = all ? std::vector{2, 3, 4} : most;
  expect_same_attention(GetParam().shape, on_cuda(DType::bfloat16), numbers, copy_on_device);
  if (!all && GetParam().name != "mqa_odd_head_dim") return;
  expect_same_attention(GetParam().shape, on_cuda(DType::float32), numbers, copy_on_device);
}

TEST_P(CudaSharedAttention, SumsDifferByTheirRoundingOnly) {
  for (const auto& [dtype, output] : {std::pair(DType::bfloat16, OutputCut::sum),
                                      {DType::float32, OutputCut::sum},
                                      {DType::bfloat16, OutputCut::sum_bf16}}) {
    expect_summed_attention(GetParam().shape, on_cuda(dtype), 2, output, copy_on_device);
  }
}

TEST_P(CudaSharedAttention, KeptHeadsAreSavedAndLoaded) {
  expect_kept_heads_saved(GetParam().shape, on_cuda(DType::bfloat16),
                          GetParam().shape.num_heads == 12 ? 3 : 2, copy_on_device);
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaSharedAttention, ::testing::ValuesIn(shared_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

class CudaMember : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
};

TEST_F(CudaMember, HoldsWhatIsPlanned) {
  auto shape = tiny_shape();
  shape.qk_norm = QkNorm::whole_row;
  const auto model = random_model(shape, DType::bfloat16, 1);
  for (const OutputCut output : {OutputCut::rows, OutputCut::columns, OutputCut::either,
                                 OutputCut::sum, OutputCut::sum_bf16}) {
    compute::BackendOptions options;
    RankOptions rank = on_cuda(DType::bfloat16);
    const auto make = rank.make_backend;
    rank.make_backend = [&](const compute::BackendOptions& given) {
      options = given;
      options.part.attention = compute::share_attention(shape, 4, 3, output);
      return make(options);
    };
    SingleRank single(model, rank);
    const compute::MemoryPlan plan = compute::cuda_memory_plan(options);
    const auto held = single.backend().memory();
    EXPECT_EQ(held.weights, plan.weights);
    EXPECT_EQ(held.kv_cache, plan.kv_cache);
    EXPECT_EQ(held.buffers, plan.buffers());
  }
}

TEST_F(CudaMember, RefusesStepsThatDoNotFit) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 3);
  AttentionMembers group(model, 2, OutputCut::columns, on_cuda(DType::bfloat16), copy_on_device);
  const std::vector<std::int32_t> tokens(16, 1);
  const SingleRank::Piece piece{group.add_sequence(), tokens};
  group.start({&piece, 1});
  EXPECT_THROW(group.rank(1).backend().attention(group.rank(1).chunk(), 0), Error);
}

}  // namespace
}  // namespace atl::testing
