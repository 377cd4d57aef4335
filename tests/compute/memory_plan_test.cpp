// The memory plan: for the CPU what a backend then holds; for a GPU without one. (That the CUDA
// backend holds what is planned is in tests/cuda/backend_test.cpp.)

#include "compute/memory_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "compute/error.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

class CpuPlan : public ::testing::TestWithParam<ModelKind> {};

TEST_P(CpuPlan, IsWhatABackendHolds) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    RankOptions rank;
    rank.dtype = dtype;
    rank.num_threads = 2;
    rank.max_chunk_tokens = 150;
    compute::BackendOptions options;
    rank.make_backend = [&options](const compute::BackendOptions& given) {
      options = given;
      return compute::make_cpu_backend(given);
    };
    SingleRank single(random_model(GetParam().shape, dtype, 1), rank);
    options.receive_rows = 1000;
    const compute::MemoryPlan plan = compute::cpu_memory_plan(options);
    single.chunk().reserve_receive(options.receive_rows);
    const auto held = single.backend().memory();
    EXPECT_EQ(held.weights, plan.weights) << name_of(dtype);
    EXPECT_EQ(held.kv_cache, plan.kv_cache) << name_of(dtype);
    EXPECT_EQ(held.kv_cache, compute::cpu_kv_bytes(options)) << name_of(dtype);
    EXPECT_EQ(held.buffers, plan.buffers()) << name_of(dtype);
    const auto other = single.backend().make_chunk();
    options.num_chunks = 2;
    options.receive_rows = 0;
    single.chunk().reserve_receive(0);
    const compute::MemoryPlan two = compute::cpu_memory_plan(options);
    EXPECT_EQ(two.received, 0);
    EXPECT_EQ(single.backend().memory().buffers, two.buffers() + plan.received) << name_of(dtype);
  }
}

TEST_P(CpuPlan, IsWhatRanksThatShareAttentionHold) {
  using compute::OutputCut;
  const ModelShape& shape = GetParam().shape;
  for (const OutputCut output : {OutputCut::rows, OutputCut::columns, OutputCut::either,
                                 OutputCut::sum, OutputCut::sum_bf16}) {
    const bool cuts = output == OutputCut::columns || output == OutputCut::either;
    if (cuts && shape.hidden % 2 != 0) continue;
    RankOptions rank;
    rank.dtype = DType::bfloat16;
    rank.num_threads = 2;
    rank.max_chunk_tokens = 150;
    compute::BackendOptions options;
    rank.make_backend = [&](const compute::BackendOptions& given) {
      options = given;
      options.part.attention = compute::share_attention(shape, 2, 1, output);
      return compute::make_cpu_backend(options);
    };
    SingleRank single(random_model(shape, rank.dtype, 1), rank);
    const compute::MemoryPlan plan = compute::cpu_memory_plan(options);
    const auto held = single.backend().memory();
    EXPECT_EQ(held.weights, plan.weights);
    EXPECT_EQ(held.kv_cache, plan.kv_cache);
    EXPECT_EQ(held.buffers, plan.buffers());
    options.part.attention = {};
    const compute::MemoryPlan alone = compute::cpu_memory_plan(options);
    EXPECT_LT(plan.weights, alone.weights);
    const int kept = shape.num_kv_heads == 1 ? 1 : shape.num_kv_heads / 2;
    EXPECT_EQ(plan.kv_cache * shape.num_kv_heads, alone.kv_cache * kept);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CpuPlan, ::testing::ValuesIn(model_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

/// Pieces of device memory begin at multiples of 256 bytes.
std::int64_t piece(std::int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

TEST(CudaPlan, CountsEveryWeightAndPage) {
  compute::BackendOptions options = tiny_options();
  const auto plan = compute::cuda_memory_plan(options);
  // Angles; of the experts' places where each one's begin, what they are, where nodes begin.
  std::int64_t weights = piece(4 * 64 * 16 * 4) + piece(6 * 4) + piece(5 * 12) + piece(2 * 4);
  compute::for_each_weight(options.shape, options.part,
                           [&](const compute::WeightInfo& info, int, int) {
                             const int bytes = info.use == compute::Use::vector ? 4 : 2;
                             weights += piece(info.num_elements() * bytes);
                           });
  EXPECT_EQ(plan.weights, weights);
  EXPECT_EQ(plan.kv_cache, 3 * 2 * piece(4 * 64 * 2 * 16 * 2));
  EXPECT_EQ(plan.total(), plan.weights + plan.kv_cache + plan.buffers());
}

TEST(CudaPlan, GrowsWithChunksRowsAndExperts) {
  compute::BackendOptions options = tiny_options();
  const auto one = compute::cuda_memory_plan(options);
  EXPECT_EQ(one.received, 0);
  options.num_chunks = 3;
  options.receive_rows = 3;
  const auto three = compute::cuda_memory_plan(options);
  EXPECT_EQ(three.workspace, one.workspace);
  EXPECT_EQ(three.chunks, 3 * one.chunks);
  EXPECT_EQ(three.received, 3 * 2 * piece(3 * 48 * 2));
  options.part.experts[1] = {0, 2};
  options.part.experts[2] = {1};
  const std::int64_t expert = 2 * piece(40 * 48 * 2) + piece(48 * 40 * 2);
  EXPECT_EQ(compute::cuda_memory_plan(options).weights, one.weights - 7 * expert);
}

TEST(CudaPlan, RefusesWhatTheKernelsCannotRun) {
  compute::BackendOptions options = tiny_options();
  options.shape.head_dim = 33;
  EXPECT_THROW(compute::cuda_memory_plan(options), Error);
  options = tiny_options();
  options.page_tokens = 48;
  EXPECT_THROW(compute::cuda_memory_plan(options), Error);
}

}  // namespace
}  // namespace atl::testing
