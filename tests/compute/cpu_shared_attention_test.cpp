// timeout: 120
// Attention of the CPU backend that several ranks share, against a rank alone.

#include "compute/error.hpp"
#include "tests/compute/shared_attention.hpp"
#include "tests/count_allocations.hpp"

namespace atl::testing {
namespace {

class CpuSharedAttention : public ::testing::TestWithParam<ModelKind> {};

TEST_P(CpuSharedAttention, SameBitsHoweverManyShareIt) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    expect_same_attention(GetParam().shape, {.dtype = dtype, .num_threads = 2}, {2, 3, 4, 6, 8});
  }
}

TEST_P(CpuSharedAttention, SumsDifferByTheirRoundingOnly) {
  for (const auto& [dtype, output] : {std::pair(DType::bfloat16, OutputCut::sum),
                                      {DType::float32, OutputCut::sum},
                                      {DType::bfloat16, OutputCut::sum_bf16}}) {
    expect_summed_attention(GetParam().shape, {.dtype = dtype, .num_threads = 2}, 2, output);
  }
}

TEST_P(CpuSharedAttention, KeptHeadsAreSavedAndLoaded) {
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    expect_kept_heads_saved(GetParam().shape, {.dtype = dtype},
                            GetParam().shape.num_heads == 12 ? 3 : 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CpuSharedAttention, ::testing::ValuesIn(shared_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

TEST(CpuSharedAttention, PartsOfARankAloneMakeTheWhole) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 3);
  const std::vector<std::int32_t> tokens = {3, 1, 4, 1, 5};
  const SingleRank::Piece piece{0, tokens};
  AttentionMembers parts(model, 1, OutputCut::columns, {.dtype = DType::bfloat16});
  parts.add_sequence();
  parts.start({&piece, 1});
  parts.attention(0);
  SingleRank whole(model, {.dtype = DType::bfloat16});
  whole.add_sequence();
  whole.set_chunk({&piece, 1});
  whole.backend().embed(whole.chunk());
  whole.backend().attention(whole.chunk(), 0);
  std::vector<float> x(tokens.size() * 48);
  whole.finish(whole.backend().save_x(whole.chunk(), x.data()));
  EXPECT_EQ(parts.x(), x);
}

TEST(CpuSharedAttention, RefusesStepsAndRowsThatDoNotFit) {
  const auto model = random_model(tiny_shape(), DType::float32, 3);
  AttentionMembers group(model, 2, OutputCut::columns, {.max_chunk_tokens = 8});
  const std::vector<std::int32_t> tokens(16, 1);
  const SingleRank::Piece piece{group.add_sequence(), tokens};
  group.start({&piece, 1});
  compute::Backend& backend = group.rank(1).backend();
  compute::Chunk& chunk = group.rank(1).chunk();
  EXPECT_THROW(backend.attention(chunk, 0), Error);
  chunk.first_own_row = 9;
  EXPECT_THROW(backend.attention(chunk, 0, AttentionPart::norm), Error);
  chunk.all_rows = 17;
  EXPECT_THROW(backend.attention(chunk, 0, AttentionPart::norm), Error);
  chunk.all_rows = 16;
  chunk.first_own_row = 8;
  group.rank(1).finish(backend.attention(chunk, 0, AttentionPart::norm));

  compute::BackendOptions options = tiny_options();
  options.part.attention = compute::share_attention(options.shape, 2, 1, OutputCut::rows);
  options.part.attention.place = 0;
  EXPECT_THROW(compute::make_cpu_backend(options), Error);
}

TEST(CpuSharedAttention, DecodingAllocatesNothing) {
  auto shape = tiny_shape();
  shape.qk_norm = QkNorm::whole_row;
  const auto model = random_model(shape, DType::bfloat16, 2);
  const std::vector<std::int32_t> token = {7};
  for (const auto& [has, passes] : {std::pair(OutputCut::rows, 1),
                                    {OutputCut::columns, 1},
                                    {OutputCut::either, 2},
                                    {OutputCut::sum, 1},
                                    {OutputCut::sum_bf16, 1}}) {
    AttentionMembers group(model, 2, has, {.dtype = DType::bfloat16, .num_threads = 2},
                           copy_on_host);
    const std::vector<SingleRank::Piece> pieces = {{group.add_sequence(), token},
                                                   {group.add_sequence(), token}};
    const auto attention = [&] {
      for (const auto part : {AttentionPart::norm, AttentionPart::project, AttentionPart::attend,
                              AttentionPart::output, AttentionPart::add}) {
        group.rank(0).finish(group.rank(0).backend().attention(group.rank(0).chunk(), 1, part));
      }
    };
    for (int pass = 0; pass < passes; ++pass) {
      group.start(pieces);
      for (int i = 0; i < 3; ++i) attention();
      counted::allocations = 0;
      counted::counting = true;
      for (int i = 0; i < 20; ++i) attention();
      counted::counting = false;
      EXPECT_EQ(counted::allocations.load(), 0) << compute::name_of(has);
    }
  }
}

TEST(CpuSharedAttention, RefusesAnOutputThatRanksDoNotHave) {
  const auto model = random_model(tiny_shape(), DType::float32, 3);
  const std::vector<std::int32_t> tokens(4, 1);
  const auto norm = [&](OutputCut has, OutputCut pass) {
    AttentionMembers group(model, 2, has, {.max_chunk_tokens = 8});
    const SingleRank::Piece piece{group.add_sequence(), tokens};
    group.start({&piece, 1});
    compute::Chunk& chunk = group.rank(1).chunk();
    chunk.output = pass;
    compute::Backend& backend = group.rank(1).backend();
    group.rank(1).finish(backend.attention(chunk, 0, AttentionPart::norm));
  };
  EXPECT_THROW(norm(OutputCut::rows, OutputCut::columns), Error);
  EXPECT_THROW(norm(OutputCut::columns, OutputCut::rows), Error);
  EXPECT_THROW(norm(OutputCut::either, OutputCut::sum), Error);
  EXPECT_NO_THROW(norm(OutputCut::either, OutputCut::rows));
  EXPECT_THROW(norm(OutputCut::sum_bf16, OutputCut::sum_bf16), Error);  // of float32 activations
}

}  // namespace
}  // namespace atl::testing
