// timeout: 480
// Models that only version 2 of files describes, on CUDA: what is refused, tokens that attend to
// latents, long sequences, caches. (That they agree with the oracle, backend_test.cpp tries.)

#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "compute/error.hpp"
#include "compute/memory_plan.hpp"
#include "tests/compute/model_checks.hpp"
#include "tests/compute/shared_attention.hpp"
#include "tests/compute/shared_experts.hpp"
#include "tests/cuda/on_device.hpp"
#include "tests/described_kinds.hpp"

namespace atl::testing {
namespace {

class CudaDescribed : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
};

TEST(CudaPlanned, WhatIsNotThereIsRefusedByName) {
  const auto refusal = [](const ModelShape& shape) -> std::string {
    compute::BackendOptions options = tiny_options();
    options.shape = shape;
    options.part = compute::whole_model(shape);
    try {
      compute::cuda_memory_plan(options);
    } catch (const Error& error) {
      return error.what();
    }
    return {};
  };
  for (const ModelKind& kind : described_kinds()) EXPECT_EQ(refusal(kind.shape), "") << kind.name;
  ModelShape biased = tiny_shape();
  biased.router.logit_bias = true;
  ModelShape wide = tiny_shape();
  set_latents(wide, 28);
  wide.latent.keys = 572;
  for (const auto& [shape, part] :
       {std::pair{biased, "biases of logits below a softmax"}, {wide, "latents of 572"}}) {
    EXPECT_NE(refusal(shape).find(part), std::string::npos) << refusal(shape);
    EXPECT_NE(refusal(shape).find("--backend cpu"), std::string::npos);
  }
}

/// Rows after the prompt attend to latents themselves: their bits, too, are the same in all pieces.
TEST_F(CudaDescribed, GeneratedTokensAttendToLatents) {
  for (const ModelKind& kind : latent_kinds()) {
    for (const DType dtype : {DType::bfloat16, DType::float32}) {
      const auto model = random_model(kind.shape, dtype, 3);
      const auto tokens = Random(9, dtype).tokens(130, model.shape.vocab);
      RankOptions options = on_cuda(dtype);
      options.prompt = 70;
      SingleRank rank(model, options);
      const auto whole = rank.logits(tokens, 130);
      for (const int piece : {1, 7, 64, 100}) {
        EXPECT_EQ(whole, rank.logits(tokens, piece)) << kind.name << ", pieces of " << piece;
      }
      if (dtype == DType::float32) {
        EXPECT_LT(
            largest_difference(rank.log_probs(tokens, 50), reference::log_probs(model, tokens)),
            1e-4);
      } else {
        options.prompt = 130;
        EXPECT_NE(whole, SingleRank(model, options).logits(tokens, 130)) << "another way to round";
      }
    }
  }
}

/// What they round is what the oracle rounds by the same way.
TEST_F(CudaDescribed, GeneratedTokensDifferByTheirRoundingOnly) {
  for (const ModelKind& kind : latent_kinds()) {
    SCOPED_TRACE(kind.name);
    RankOptions options = on_cuda(DType::bfloat16);
    options.prompt = 10;
    expect_rounding_error_with_given_experts(kind.shape, options, 6);
  }
}

/// Windows that begin in an earlier split of keys, latents over several splits, other heads in
/// other layers: whatever the pieces.
TEST_F(CudaDescribed, LongSequencesOfDescribedKinds) {
  constexpr int length = 1100;
  for (ModelKind kind : described_kinds()) {
    if (kind.shape.attentions.size() < 2 && !kind.shape.latent.used()) continue;
    kind.shape.max_positions = 2048;
    const auto model = random_model(kind.shape, DType::bfloat16, 5);
    const auto tokens = Random(2, DType::bfloat16).tokens(length, model.shape.vocab);
    RankOptions options = on_cuda(DType::bfloat16);
    options.max_chunk_tokens = length;
    options.num_pages = 40;
    options.prompt = length - 40;
    const auto whole = SingleRank(model, options).logits(tokens, length);
    EXPECT_EQ(whole, SingleRank(model, options).logits(tokens, 300)) << kind.name;
  }
}

TEST_F(CudaDescribed, CachesOfEveryKindAreSavedAndLoaded) {
  for (const ModelKind& kind : described_kinds()) {
    expect_cache_saved_and_loaded(kind, on_cuda(DType::bfloat16));
  }
}

/// Ranks that share heads and experts of such models have a rank's own bits.
TEST_F(CudaDescribed, SameBitsWhereRanksShare) {
  for (const ModelKind& kind : described_kinds()) {
    SCOPED_TRACE(kind.name);
    expect_same_attention(kind.shape, on_cuda(DType::bfloat16), {2}, copy_on_device);
  }
}

}  // namespace
}  // namespace atl::testing
