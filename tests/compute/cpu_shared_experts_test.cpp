// Experts of the CPU backend that several ranks share, against a rank alone.

#include "compute/error.hpp"
#include "compute/memory_plan.hpp"
#include "tests/compute/shared_experts.hpp"

namespace atl::testing {
namespace {

/// 5 experts of 40 inner columns, 48 output columns.
ModelShape shape_with(Activation activation) {
  ModelShape shape = tiny_shape();
  shape.activation = activation;
  return shape;
}

TEST(CpuSharedExperts, SameBitsHoweverManyShareThem) {
  for (const Activation activation : {Activation::swiglu, Activation::gelu_tanh}) {
    for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
      expect_same_experts(shape_with(activation), {.dtype = dtype, .num_threads = 2}, {2, 4, 8});
    }
  }
  ModelShape odd = tiny_shape();  // parts that are no multiple of a vector
  odd.hidden = 33;
  odd.moe_intermediate = 21;
  expect_same_experts(odd, {.dtype = DType::bfloat16}, {3});
}

TEST(CpuSharedExperts, RefusesWhatDoesNotDivideAndOneStep) {
  EXPECT_THROW(compute::share_experts(tiny_shape(), 3, 0), Error);
  EXPECT_THROW(compute::share_experts(tiny_shape(), 2, 2), Error);
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  ExpertMembers group(model, 2, {}, copy_on_host);
  SingleRank& rank = group.rank(0);
  EXPECT_THROW(rank.backend().experts(rank.chunk(), 1, {}), Error);
  const std::vector<float> rows(48);
  std::vector<float> out(48);
  const RowBlock block{0, 1, rows.data(), out.data()};
  EXPECT_THROW(rank.backend().experts(rank.chunk(), 1, {&block, 1}, ExpertPart::collect), Error);
}

TEST(CpuSharedExperts, HoldWhatIsPlanned) {
  for (const Activation activation : {Activation::swiglu, Activation::gelu_tanh}) {
    const ModelShape shape = shape_with(activation);
    compute::BackendOptions options;
    RankOptions rank;
    rank.dtype = DType::bfloat16;
    rank.make_backend = [&](const compute::BackendOptions& given) {
      options = given;
      options.part.expert_share = compute::share_experts(shape, 4, 1);
      options.expert_room = {900, 200};
      return compute::make_cpu_backend(options);
    };
    SingleRank single(random_model(shape, rank.dtype, 1), rank);
    single.chunk().reserve_experts(options.expert_room);
    const compute::MemoryPlan plan = compute::cpu_memory_plan(options);
    const auto held = single.backend().memory();
    EXPECT_EQ(held.weights, plan.weights);
    EXPECT_EQ(held.buffers, plan.buffers());
    options.part.expert_share = {};
    EXPECT_LT(plan.weights, compute::cpu_memory_plan(options).weights);
  }
}

}  // namespace
}  // namespace atl::testing
