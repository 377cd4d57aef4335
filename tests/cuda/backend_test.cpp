// timeout: 900
// The CUDA backend as a whole: random tiny models of every supported kind against the oracle and
// the CPU backend, the same bits whatever the pieces, tickets of several streams, refusals.

#include "compute/cuda/backend.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "app/plan/placement.hpp"
#include "compute/error.hpp"
#include "compute/memory_plan.hpp"
#include "tests/compute/model_checks.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/described_kinds.hpp"

namespace atl::testing {
namespace {

std::unique_ptr<compute::Backend> make_cuda(const compute::BackendOptions& options) {
  compute::CudaShare share;
  share.device = compute::open_cuda_device(0);
  return compute::make_cuda_backend(options, share);
}

RankOptions on_cuda(DType dtype, bool reverse_experts = false) {
  RankOptions options;
  options.dtype = dtype;
  options.reverse_experts = reverse_experts;
  options.make_backend = make_cuda;
  return options;
}

class CudaModel : public ::testing::TestWithParam<ModelKind> {
 protected:
  void SetUp() override { skip_without_device(); }
};

/// Kinds whose rows that choose other experts do not outweigh rounding.
class ChoosingCudaModel : public CudaModel {};

class CudaBackend : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
};

TEST_P(CudaModel, Float32AgreesWithTheOracle) {
  expect_float32_agrees(GetParam().shape, on_cuda(DType::float32));
}

TEST_P(CudaModel, SixteenBitsOfGivenExpertsDifferByTheirRoundingOnly) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    expect_rounding_error_with_given_experts(GetParam().shape, on_cuda(dtype), 6);
  }
}

TEST_P(ChoosingCudaModel, SixteenBitsDifferByTheirRoundingOnly) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    expect_rounding_error_only(GetParam().shape, on_cuda(dtype), 6);
  }
}

TEST_P(CudaModel, ChoicesAreToldAndFollowed) {
  expect_choices_told_and_followed(GetParam().shape, on_cuda(DType::float32));
}

TEST_P(CudaModel, SameBitsWhateverThePieces) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const auto model = random_model(GetParam().shape, dtype, 3);
    const auto tokens = Random(9, dtype).tokens(130, model.shape.vocab);
    SingleRank one(model, on_cuda(dtype));
    SingleRank other(model, on_cuda(dtype, true));
    const auto whole = one.logits(tokens, 130);
    for (const int piece : {7, 64, 100}) {
      EXPECT_EQ(whole, one.logits(tokens, piece)) << name_of(dtype) << ", pieces of " << piece;
    }
    EXPECT_EQ(whole, other.logits(tokens, 50)) << name_of(dtype) << ", other order";
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaModel, ::testing::ValuesIn(model_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });
INSTANTIATE_TEST_SUITE_P(Kinds, ChoosingCudaModel, ::testing::ValuesIn(model_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

INSTANTIATE_TEST_SUITE_P(DescribedKinds, CudaModel, ::testing::ValuesIn(described_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

TEST_F(CudaBackend, LogprobsAreTheLogSoftmaxOfLogits) {
  expect_logprobs_agree(on_cuda(DType::float32));
}

TEST_F(CudaBackend, ExpertsTakeRowsFromScatteredBlocks) {
  // Few rows are gathered, many are computed where they lie: results as from one block.
  const auto shape = tiny_shape();
  const auto model = random_model(shape, DType::bfloat16, 2);
  SingleRank rank(model, on_cuda(DType::bfloat16));
  const auto width = static_cast<std::size_t>(shape.hidden);
  for (const int total : {60, 700}) {
    DeviceBytes in(
        encode(Random(1, DType::bfloat16).vector(total * shape.hidden, 0, 1), DType::bfloat16));
    DeviceBytes whole(in.host().size());
    DeviceBytes parts(in.host().size());
    const compute::RowBlock all{2, total, in.get(), whole.get()};
    rank.finish(rank.backend().experts(rank.chunk(), 1, {&all, 1}));
    // Blocks in another order than in memory, some of them adjacent to one listed before.
    std::vector<compute::RowBlock> blocks;
    const int fifth = total / 5;
    for (const int part : {3, 0, 4, 1, 2}) {
      const auto offset = static_cast<std::size_t>(part * fifth) * width * 2;
      blocks.push_back({2, fifth, in.get() + offset, parts.get() + offset});
    }
    blocks.push_back({2, 0, nullptr, nullptr});
    rank.finish(rank.backend().experts(rank.chunk(), 1, blocks));
    EXPECT_EQ(whole.host(), parts.host()) << total << " rows";
  }
}

TEST_F(CudaBackend, PartsMakeTheWhole) {
  auto gelu = tiny_shape();
  gelu.activation = Activation::gelu_tanh;
  for (const auto& shape : {tiny_shape(), gelu}) {
    expect_parts_make_the_whole(shape, on_cuda(DType::bfloat16));
  }
}

TEST_F(CudaBackend, OtherWeightsTakeThePlaceOfThoseThatAreThere) {
  expect_weights_replaced(on_cuda(DType::bfloat16));
}

TEST_F(CudaBackend, AnEmptyChunkGoesThroughEveryStep) {
  expect_empty_chunk_passes(on_cuda(DType::bfloat16));
}

TEST_F(CudaBackend, PartsOfAnOperationSayOnWhichStreamTheyRan) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 2);
  SingleRank rank(model, on_cuda(DType::bfloat16));
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  rank.set_chunk({&piece, 1});
  auto& backend = rank.backend();
  EXPECT_FALSE(backend.in_order());
  backend.embed(rank.chunk());
  backend.attention(rank.chunk(), 0);
  backend.mlp(rank.chunk(), 0);
  backend.attention(rank.chunk(), 1);
  const compute::Event route = backend.route(rank.chunk(), 1);
  rank.finish(route);
  std::array<compute::Interval, compute::Backend::max_parts> parts;
  ASSERT_EQ(backend.intervals(route, parts), 3U);
  EXPECT_STREQ(backend.stream_names()[static_cast<std::size_t>(parts[0].stream)], "compute");
  EXPECT_STREQ(backend.stream_names()[static_cast<std::size_t>(parts[1].stream)], "copy");
  EXPECT_STREQ(backend.stream_names()[static_cast<std::size_t>(parts[2].stream)], "pack");
  EXPECT_FALSE(parts[0].only_copies);
  EXPECT_TRUE(parts[1].only_copies);
  EXPECT_GE(parts[1].begin, parts[0].begin);
  EXPECT_GE(backend.interval(route).end, backend.interval(route).begin);
  EXPECT_THROW(backend.interval(route + 1), Error);
}

TEST_F(CudaBackend, TokensAreSampledFromTheLogits) {
  expect_sampled_from_logits(random_model(tiny_shape(), DType::bfloat16, 6),
                             on_cuda(DType::bfloat16));
}

/// More logits than are computed at once.
TEST_F(CudaBackend, TokensAreSampledInPieces) {
  auto shape = tiny_shape();
  shape.hidden = 8;
  shape.vocab = 300001;
  expect_sampled_from_logits(random_model(shape, DType::bfloat16, 6), on_cuda(DType::bfloat16));
}

TEST_F(CudaBackend, LogitsThatAreNotFiniteAreToldOnce) {
  expect_not_finite_told(on_cuda(DType::bfloat16));
}

TEST_F(CudaBackend, ActivationsAreSaved) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 2);
  SingleRank rank(model, on_cuda(DType::bfloat16));
  const std::vector<std::int32_t> tokens = {4, 0, 49};
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  rank.set_chunk({&piece, 1});
  rank.backend().embed(rank.chunk());
  std::vector<float> x(std::size_t{3} * 48);
  const compute::Event saved = rank.backend().save_x(rank.chunk(), x.data());
  rank.backend().attention(rank.chunk(), 0);  // changes x, but only afterwards
  rank.finish(saved);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < 48; ++j) {
      EXPECT_EQ(x[i * 48 + j], model.embedding[static_cast<std::size_t>(tokens[i])][j]);
    }
  }
}

/// A sequence goes on elsewhere from its saved keys and values, with the same bits.
TEST_F(CudaBackend, KeysAndValuesAreSavedAndLoaded) {
  const auto shape = tiny_shape();
  const auto model = random_model(shape, DType::bfloat16, 4);
  const auto tokens = Random(6, DType::bfloat16).tokens(101, shape.vocab);
  const std::vector<std::int32_t> pages = {0, 1};     // the first that SingleRank gives
  const std::size_t bytes = std::size_t{2} * 16 * 2;  // of one position: kv heads, head_dim
  const std::vector<std::int32_t> row = {0};
  std::vector<float> expected(50);
  std::vector<float> continued(50);
  std::vector<std::vector<std::byte>> keys(3, std::vector<std::byte>(100 * bytes));
  std::vector<std::vector<std::byte>> values = keys;
  RankOptions options = on_cuda(DType::bfloat16);
  options.max_chunk_tokens = 100;
  const auto continue_on = [&](SingleRank& rank, int sequence, std::vector<float>& logits) {
    const SingleRank::Piece last{sequence, std::span(tokens).subspan(100)};
    rank.set_chunk({&last, 1});
    rank.run_layers();
    rank.finish(rank.backend().logits(rank.chunk(), row, logits.data()));
  };

  SingleRank from(model, options);
  const SingleRank::Piece most{from.add_sequence(), std::span(tokens).first(100)};
  from.set_chunk({&most, 1});
  from.run_layers();
  for (int layer = 0; layer < 3; ++layer) {
    const auto l = static_cast<std::size_t>(layer);
    from.backend().save_kv(layer, pages, 0, 70, keys[l].data(), values[l].data());
    from.finish(from.backend().save_kv(layer, pages, 70, 30, keys[l].data() + 70 * bytes,
                                       values[l].data() + 70 * bytes));
  }
  continue_on(from, most.sequence, expected);

  SingleRank to(model, options);
  const SingleRank::Piece same{to.add_sequence(), std::span(tokens).first(100)};
  to.set_chunk({&same, 1});  // takes the pages, computes nothing
  for (int layer = 0; layer < 3; ++layer) {
    const auto l = static_cast<std::size_t>(layer);
    to.finish(to.backend().load_kv(layer, pages, 0, 100, keys[l].data(), values[l].data()));
  }
  continue_on(to, same.sequence, continued);
  EXPECT_EQ(expected, continued);
  EXPECT_THROW(to.backend().save_kv(3, pages, 0, 1, keys[0].data(), values[0].data()), Error);
  EXPECT_THROW(to.backend().save_kv(0, pages, 100, 29, keys[0].data(), values[0].data()), Error);
}

TEST_F(CudaBackend, RefusesWhatDoesNotFitTheModel) {
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  RankOptions small = on_cuda(DType::float32);
  small.max_chunk_tokens = 8;
  SingleRank rank(model, small);
  const std::vector<float> data(64 * 64);
  using compute::Weight;
  auto& backend = rank.backend();
  EXPECT_THROW(backend.load_weight(Weight::o, 0, -1, {data.data(), DType::float32, 64, 64}), Error);
  EXPECT_THROW(backend.load_weight(Weight::up, 1, 5, {data.data(), DType::float32, 40, 48}), Error);
  const std::vector<std::int32_t> nine(9, 1);
  const SingleRank::Piece piece{rank.add_sequence(), nine};
  rank.set_chunk({&piece, 1});
  EXPECT_THROW(backend.embed(rank.chunk()), Error);
  const std::vector<std::int32_t> outside = {1, 50};
  const SingleRank::Piece other{rank.add_sequence(), outside};
  rank.set_chunk({&other, 1});
  EXPECT_THROW(backend.embed(rank.chunk()), Error);
}

TEST_F(CudaBackend, MissingWeightsAreNamed) {
  const auto backend = make_cuda(tiny_options());
  try {
    backend->finish_loading();
    FAIL() << "a model without weights";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("embedding"), std::string::npos) << error.what();
  }
}

TEST_F(CudaBackend, TheMemoryPlanIsWhatIsTaken) {
  compute::BackendOptions options = tiny_options();
  options.num_chunks = 2;
  options.chunk_tokens = {8, 5};
  options.receive_rows = 21;
  const auto plan = compute::cuda_memory_plan(options);
  const auto backend = make_cuda(options);
  const auto first = backend->make_chunk();
  const auto second = backend->make_chunk();
  const auto memory = backend->memory();
  EXPECT_EQ(memory.weights, plan.weights);
  EXPECT_EQ(memory.kv_cache, plan.kv_cache);
  EXPECT_EQ(memory.buffers, plan.buffers());
  EXPECT_EQ(second->receive_capacity, 21);
  const void* const received = second->dispatch_recv;
  second->reserve_receive(21);
  EXPECT_EQ(second->dispatch_recv, received);
  first->reserve_receive(1000);
  EXPECT_GE(first->receive_capacity, 1000);
  EXPECT_GE(backend->memory().buffers, memory.buffers + 2 * 900 * 48 * 2);
}

TEST_F(CudaBackend, ReceiveBuffersDoubleUpToWhatCanCome) {
  compute::BackendOptions options = tiny_options();
  options.receive_rows = 20;
  options.most_receive_rows = 50;
  const auto backend = make_cuda(options);
  const auto chunk = backend->make_chunk();
  for (const auto& [rows, capacity] : {std::pair{21, 40}, {41, 50}, {50, 50}}) {
    chunk->reserve_receive(rows);
    EXPECT_EQ(chunk->receive_capacity, capacity) << rows;
  }
}

/// The first half of the experts on this rank, the others on another node.
compute::BackendOptions two_node_options() {
  compute::BackendOptions options = tiny_options();
  const Layout layout = make_layout({0, 1});
  options.part = even_placement(options.shape, layout).part_of(0, options.shape, layout);
  options.across = true;
  return options;
}

TEST_F(CudaBackend, TheMemoryPlanKnowsOfRowsAcrossNodes) {
  compute::BackendOptions options = two_node_options();
  options.num_chunks = 2;
  options.receive_rows = 21;
  options.split_experts = true;
  const auto plan = compute::cuda_memory_plan(options);
  const auto backend = make_cuda(options);
  const auto first = backend->make_chunk();
  const auto second = backend->make_chunk();
  EXPECT_EQ(backend->memory().buffers, plan.buffers());
  compute::BackendOptions flat = options;
  flat.across = false;
  // A chunk of 8 tokens has 16 rows or results each to send, to take in and to give back; their
  // tails take 32 bytes.
  const std::int64_t rows = std::int64_t{16} * 48 * 2;
  EXPECT_GE(plan.buffers(),
            compute::cuda_memory_plan(flat).buffers() + 2 * (4 * rows + 2 * 16 * 32));
}

TEST_F(CudaBackend, BuffersForRowsAcrossNodesDouble) {
  const auto backend = make_cuda(two_node_options());
  const auto chunk = backend->make_chunk();
  const auto before = backend->memory().buffers;
  const auto pointers = [&] {
    return std::vector<void*>{chunk->dispatch_send, chunk->combine_recv, chunk->across_recv,
                              chunk->across_done, chunk->across_send};
  };
  compute::NodeRows rows;
  rows.arrived = 16;
  rows.arrived_returns = 16;
  const auto there = pointers();
  chunk->reserve_across(rows, 16);
  EXPECT_EQ(pointers(), there);
  EXPECT_EQ(backend->memory().buffers, before);
  chunk->reserve_across(rows, 17);
  const auto grown = backend->memory().buffers;
  EXPECT_GE(grown, before + 2 * 16 * 48 * 2);
  chunk->reserve_across(rows, 32);
  EXPECT_EQ(backend->memory().buffers, grown);
  EXPECT_EQ(chunk->across_send, there.back());  // what was packed stays
  rows.arrived = 33;
  chunk->reserve_across(rows, 32);
  EXPECT_GE(backend->memory().buffers, grown + 16 * 48 * 2);
}

TEST_F(CudaBackend, RefusesToRouteToNodesWhereItWasNotSetUp) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 2);
  SingleRank rank(model, on_cuda(DType::bfloat16));
  EXPECT_THROW(rank.backend().route(rank.chunk(), 1, compute::RouteTo::nodes), Error);
  EXPECT_THROW(rank.backend().regroup(rank.chunk(), 1, {}), Error);
  EXPECT_THROW(rank.backend().fold(rank.chunk(), 1, {}), Error);
}

TEST_F(CudaBackend, OneRanksTokensAllGoToItsNode) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 2);
  SingleRank rank(model, on_cuda(DType::bfloat16));
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  rank.set_chunk({&piece, 1});
  rank.run_layers();
  const std::vector<std::int32_t> three = {3};
  EXPECT_TRUE(std::ranges::equal(rank.chunk().node_rows, three));
  EXPECT_TRUE(std::ranges::equal(rank.chunk().node_returns, three));
}

TEST_F(CudaBackend, TooManyReplicasAreRefused) {
  compute::BackendOptions options = tiny_options();
  compute::ExpertPlaces& places = options.part.places.front();
  for (int place = places.num_places(); place < 1536; ++place) {
    places.replicas.push_back({place, 0, compute::Distance::elsewhere});
  }
  places.first_of_expert.back() = places.num_places();
  try {
    compute::cuda_memory_plan(options);
    FAIL() << "more replicas than are counted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("1536 replicas"), std::string::npos) << error.what();
  }
}

TEST_F(CudaBackend, WhatDoesNotFitIsRefusedWithWhatWould) {
  compute::BackendOptions options = tiny_options();
  options.num_pages = 100000;
  compute::CudaShare share;
  share.device = compute::open_cuda_device(0);
  share.num_ranks = 2;
  const auto without_kv = compute::cuda_memory_plan(tiny_options());
  share.memory_bytes = without_kv.weights + without_kv.buffers() + (std::int64_t{64} << 20);
  try {
    compute::make_cuda_backend(options, share);
    FAIL() << "larger than the memory";
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const char* part : {"weights", "KV cache", "buffers", "2 ranks", "--kv-tokens"}) {
      EXPECT_NE(text.find(part), std::string::npos) << text;
    }
  }
  share.memory_bytes = 1 << 20;
  EXPECT_THROW(compute::make_cuda_backend(options, share), Error);
}

}  // namespace
}  // namespace atl::testing
