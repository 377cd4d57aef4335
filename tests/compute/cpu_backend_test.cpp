// timeout: 150
// The CPU backend as a whole: random tiny models of every supported kind against the oracle, the
// same bits whatever the pieces and threads, no allocation in the loop over passes, errors, the
// queue.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "compute/cpu/queue.hpp"
#include "compute/error.hpp"
#include "tests/compute/model_checks.hpp"
#include "tests/count_allocations.hpp"
#include "tests/described_kinds.hpp"

namespace atl::testing {
namespace {

class CpuModel : public ::testing::TestWithParam<ModelKind> {};

TEST_P(CpuModel, Float32AgreesWithTheOracle) {
  expect_float32_agrees(GetParam().shape, {});
}

TEST_P(CpuModel, SixteenBitsDifferByTheirRoundingOnly) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    expect_rounding_error_only(GetParam().shape, {.dtype = dtype}, 6);
  }
}

TEST_P(CpuModel, SameBitsWhateverThePiecesAndThreads) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    const auto model = random_model(GetParam().shape, dtype, 3);
    const auto tokens = Random(9, dtype).tokens(230, model.shape.vocab);
    SingleRank one(model, {.dtype = dtype, .num_threads = 1});
    SingleRank two(model, {.dtype = dtype, .num_threads = 2, .reverse_experts = true});
    const auto whole = one.logits(tokens, 230);
    for (const int piece : {1, 7, 64, 100}) {
      EXPECT_EQ(whole, one.logits(tokens, piece)) << name_of(dtype) << ", pieces of " << piece;
    }
    for (const int piece : {230, 1, 50}) {
      EXPECT_EQ(whole, two.logits(tokens, piece)) << name_of(dtype) << ", 2 threads, " << piece;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CpuModel, ::testing::ValuesIn(model_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

INSTANTIATE_TEST_SUITE_P(DescribedKinds, CpuModel, ::testing::ValuesIn(described_kinds()),
                         [](const auto& kind_info) { return kind_info.param.name; });

/// Rows after the prompt attend to latents themselves: their bits, too, are the same in all pieces.
TEST(CpuBackend, GeneratedTokensAttendToLatents) {
  for (const ModelKind& kind : described_kinds()) {
    if (!kind.shape.latent.used()) continue;
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      const auto model = random_model(kind.shape, dtype, 11);
      const auto tokens = Random(5, dtype).tokens(150, kind.shape.vocab);
      SingleRank rank(model, {.dtype = dtype, .prompt = 70});
      const auto whole = rank.logits(tokens, 150);
      SingleRank two(model, {.dtype = dtype, .num_threads = 2, .prompt = 70});
      for (const int piece : {1, 33, 90}) EXPECT_EQ(two.logits(tokens, piece), whole) << piece;
      const auto expanded = SingleRank(model, {.dtype = dtype}).logits(tokens, 150);
      EXPECT_NE(expanded, whole) << kind.name;  // else it was not another way
      if (dtype != DType::float32) continue;
      EXPECT_LT(
          largest_difference(rank.log_probs(tokens, 150), reference::log_probs(model, tokens)),
          1e-4);
    }
  }
}

/// What they round is what the oracle rounds by the same way.
TEST(CpuBackend, GeneratedTokensDifferByTheirRoundingOnly) {
  for (const ModelKind& kind : latent_kinds()) {
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      SCOPED_TRACE(kind.name);
      expect_rounding_error_with_given_experts(kind.shape, {.dtype = dtype, .prompt = 10}, 6);
    }
  }
}

/// Windows that begin in an earlier split of keys, or end before the last one, and latents over
/// several splits.
TEST(CpuBackend, LongSequencesOfDescribedKindsAgreeWithTheOracle) {
  constexpr int length = 1150;
  for (ModelKind kind : described_kinds()) {
    ModelShape& shape = kind.shape;
    if (shape.attentions.size() < 2 && !shape.latent.used()) continue;
    shape.max_positions = length;
    shape.num_layers = 2;
    shape.attention_of.resize(2);
    shape.layer_is_dense.resize(2);
    if (kind.name.starts_with("sinks")) shape.attentions[0].window = 600;
    const auto model = random_model(shape, DType::float32, 21);
    const auto tokens = Random(6, DType::float32).tokens(length, shape.vocab);
    const RankOptions one{.max_chunk_tokens = length, .num_pages = 40, .prompt = length - 40};
    RankOptions two = one;
    two.num_threads = 2;
    SingleRank rank(model, one);
    EXPECT_LT(
        largest_difference(rank.log_probs(tokens, length), reference::log_probs(model, tokens)),
        1e-4)
        << kind.name;
    EXPECT_EQ(SingleRank(model, two).logits(tokens, 333), rank.logits(tokens, length)) << kind.name;
  }
}

TEST(CpuBackend, CachesOfEveryKindAreSavedAndLoaded) {
  for (const ModelKind& kind : described_kinds()) {
    expect_cache_saved_and_loaded(kind, {.dtype = DType::bfloat16});
  }
}

TEST(CpuBackend, SequencesInOneChunkDoNotTouchEachOther) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 3);
  Random random(4, DType::bfloat16);
  const std::vector<std::vector<std::int32_t>> texts = {
      random.tokens(1, 50), random.tokens(90, 50), random.tokens(3, 50), random.tokens(130, 50)};
  SingleRank rank(model, {.dtype = DType::bfloat16, .num_threads = 2});
  std::vector<std::vector<float>> alone;
  for (const auto& text : texts) alone.push_back(rank.logits(text, 256));

  std::vector<SingleRank::Piece> pieces;
  for (const auto& text : texts) pieces.push_back({rank.add_sequence(), text});
  rank.set_chunk(pieces);
  rank.run_layers();
  std::int32_t row = -1;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    row += static_cast<std::int32_t>(texts[i].size());
    std::vector<float> last(50);
    rank.finish(rank.backend().logits(rank.chunk(), {&row, 1}, last.data()));
    EXPECT_TRUE(std::equal(last.begin(), last.end(), alone[i].end() - 50)) << "sequence " << i;
  }
}

TEST(CpuBackend, LogprobsAreTheLogSoftmaxOfLogits) {
  expect_logprobs_agree({});
}

TEST(CpuBackend, TokensAreSampledFromTheLogits) {
  for (const int threads : {1, 2}) {
    expect_sampled_from_logits(random_model(tiny_shape(), DType::bfloat16, 6),
                               {.dtype = DType::bfloat16, .num_threads = threads});
  }
}

TEST(CpuBackend, LogitsThatAreNotFiniteAreToldOnce) {
  expect_not_finite_told({.dtype = DType::bfloat16, .num_threads = 2});
}

TEST(CpuBackend, ExpertsTakeRowsFromScatteredBlocks) {
  // 300 rows of one expert in blocks of uneven size, one empty; results as from one block.
  auto shape = tiny_shape();
  const auto model = random_model(shape, DType::bfloat16, 2);
  SingleRank rank(model, {.dtype = DType::bfloat16});
  const auto width = static_cast<std::size_t>(shape.hidden);
  const auto in =
      encode(Random(1, DType::bfloat16).vector(300 * shape.hidden, 0, 1), DType::bfloat16);
  std::vector<std::byte> whole(in.size());
  std::vector<std::byte> parts(in.size());
  const compute::RowBlock all{2, 300, in.data(), whole.data()};
  rank.finish(rank.backend().experts(rank.chunk(), 1, {&all, 1}));
  std::vector<compute::RowBlock> blocks;
  int first = 0;
  for (const int rows : {1, 0, 100, 29, 130, 40}) {
    const std::size_t offset = static_cast<std::size_t>(first) * width * 2;
    blocks.push_back({2, rows, in.data() + offset, parts.data() + offset});
    first += rows;
  }
  rank.finish(rank.backend().experts(rank.chunk(), 1, blocks));
  EXPECT_EQ(whole, parts);
  const auto truth = reference::mlp(model.layers[1].experts[2],
                                    decode(in.data() + 299 * width * 2, width, DType::bfloat16),
                                    shape.activation, reference::to_bfloat16);
  const auto last = decode(whole.data() + 299 * width * 2, width, DType::bfloat16);
  for (std::size_t i = 0; i < width; ++i) EXPECT_NEAR(last[i], truth[i], 0.02);
}

TEST_P(CpuModel, ChoicesAreToldAndFollowed) {
  expect_choices_told_and_followed(GetParam().shape, {.num_threads = 2});
}

TEST(CpuBackend, PartsMakeTheWhole) {
  auto gelu = tiny_shape();
  gelu.activation = Activation::gelu_tanh;
  for (const auto& shape : {tiny_shape(), gelu}) {
    expect_parts_make_the_whole(shape, {.dtype = DType::bfloat16, .num_threads = 2});
  }
}

TEST(CpuBackend, OtherWeightsTakeThePlaceOfThoseThatAreThere) {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    expect_weights_replaced({.dtype = dtype});
  }
}

TEST(CpuBackend, AnEmptyChunkGoesThroughEveryStep) {
  expect_empty_chunk_passes({.dtype = DType::bfloat16});
}

void expect_no_allocation(const ModelShape& shape) {
  const auto model = random_model(shape, DType::bfloat16, 2);
  for (const int threads : {1, 2}) {
    SingleRank rank(model, {.dtype = DType::bfloat16, .num_threads = threads, .prompt = 20});
    const std::vector<SingleRank::Piece> start = {{rank.add_sequence(), {}},
                                                  {rank.add_sequence(), {}}};
    const std::vector<std::int32_t> token = {7};
    const std::vector<std::int32_t> rows = {0, 1};
    std::vector<SingleRank::Piece> pieces = {{start[0].sequence, token},
                                             {start[1].sequence, token}};
    const std::vector<SamplingRequest> how = {{}, {{0.8, 0.9, 5}, 1}};
    std::vector<SampledToken> sampled(2);
    std::vector<ScoredToken> logprobs(2);
    const auto pass = [&] {
      rank.set_chunk(pieces);
      rank.run_layers();
      rank.backend().sample(rank.chunk(), rows, how, sampled.data());
      rank.finish(rank.backend().logprobs(rank.chunk(), rows, rows, logprobs.data()));
    };
    for (int i = 0; i < 3; ++i) pass();
    counted::allocations = 0;
    counted::counting = true;
    for (int i = 0; i < 80; ++i) pass();
    counted::counting = false;
    EXPECT_EQ(counted::allocations.load(), 0) << threads << " threads";
  }
}

TEST(CpuBackend, DecodingAllocatesNothing) {
  expect_no_allocation(tiny_shape());
  for (const ModelKind& kind : described_kinds()) expect_no_allocation(kind.shape);
}

TEST(CpuBackend, RefusesWhatDoesNotFitTheModel) {
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  SingleRank rank(model, {.max_chunk_tokens = 8});
  const std::vector<float> data(64 * 64);
  using compute::Weight;
  auto& backend = rank.backend();
  EXPECT_THROW(backend.load_weight(Weight::o, 0, -1, {data.data(), DType::float32, 64, 64}), Error);
  EXPECT_THROW(backend.load_weight(Weight::o, 3, -1, {data.data(), DType::float32, 48, 64}), Error);
  EXPECT_THROW(backend.load_weight(Weight::up, 1, 5, {data.data(), DType::float32, 40, 48}), Error);
  const std::vector<std::int32_t> nine(9, 1);
  const SingleRank::Piece piece{rank.add_sequence(), nine};
  rank.set_chunk({&piece, 1});
  EXPECT_THROW(backend.embed(rank.chunk()), Error);

  compute::BackendOptions options;
  options.shape = tiny_shape();
  options.max_chunk_tokens = 8;
  options.part = compute::whole_model(options.shape);
  EXPECT_THROW(compute::make_cpu_backend(options)->finish_loading(), Error);
  options.part.end_layer = options.shape.num_layers + 1;
  EXPECT_THROW(compute::make_cpu_backend(options), Error);
  options.part = compute::whole_model(options.shape);
  options.shape.head_dim = 33;
  EXPECT_THROW(compute::make_cpu_backend(options), Error);
}

TEST(CpuBackend, AnErrorInAnOperationReachesTheCallerAndStopsWhatFollows) {
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  SingleRank rank(model, {});
  const std::vector<std::int32_t> outside = {1, 50};
  const SingleRank::Piece piece{rank.add_sequence(), outside};
  rank.set_chunk({&piece, 1});
  auto& backend = rank.backend();
  const compute::Event failed = backend.embed(rank.chunk());
  std::vector<float> x(2 * 48, 7);
  const compute::Event after = backend.save_x(rank.chunk(), x.data());
  EXPECT_THROW(rank.finish(after), Error);
  EXPECT_THROW(backend.done(failed), Error);
  EXPECT_EQ(x, std::vector<float>(2 * 48, 7));
}

TEST(CpuQueue, TasksRunInOrderAndIntervalsAreKept) {
  compute::CpuQueue queue([] {}, [](const compute::CpuOp& op) { (*op.task)(); });
  const auto enqueue = [&queue](const std::function<void()>& task) {
    compute::CpuOp op;
    op.task = &task;
    return queue.enqueue(op);
  };
  std::vector<int> order;
  std::vector<std::function<void()>> tasks;
  for (int i = 0; i < 3000; ++i) tasks.emplace_back([&order, i] { order.push_back(i); });
  std::atomic<bool> may_end{false};
  const std::function<void()> slow = [&may_end] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    while (!may_end) std::this_thread::yield();
  };
  const compute::Event first = enqueue(slow);
  EXPECT_FALSE(queue.done(first));
  EXPECT_FALSE(queue.wait(first, 1000));
  may_end = true;
  compute::Event last = first;
  for (const auto& task : tasks) last = enqueue(task);  // more than the queue holds
  queue.finish(last, /*may_run_here=*/false);
  EXPECT_TRUE(queue.done(first));
  std::vector<int> expected(3000);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
  const compute::Interval interval = queue.interval(first);
  EXPECT_GE(interval.end - interval.begin, 0.03);
  EXPECT_GE(queue.interval(last).begin, interval.end);
  EXPECT_THROW(queue.interval(last + 1), Error);
}

/// Logits of `tokens` after what the sequence has already.
std::vector<float> continue_with(SingleRank& rank, int sequence,
                                 const std::vector<std::int32_t>& tokens, int vocab) {
  const SingleRank::Piece piece{sequence, tokens};
  rank.set_chunk({&piece, 1});
  rank.run_layers();
  std::vector<std::int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> logits(tokens.size() * static_cast<std::size_t>(vocab));
  rank.finish(rank.backend().logits(rank.chunk(), rows, logits.data()));
  return logits;
}

/// Threads share the splits of a long context, by pieces of its prompt or by single tokens.
TEST(CpuBackend, SameBitsAcrossSplitsWhateverThePiecesAndThreads) {
  auto shape = tiny_shape();
  shape.max_positions = 2048;
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    const auto model = random_model(shape, dtype, 3);
    const auto tokens = Random(9, dtype).tokens(1060, shape.vocab);
    SingleRank one(model, {.dtype = dtype, .max_chunk_tokens = 1060});
    SingleRank many(model, {.dtype = dtype, .num_threads = 8, .max_chunk_tokens = 1060});
    const auto whole = one.logits(tokens, 1060);
    EXPECT_EQ(whole, one.logits(tokens, 1)) << name_of(dtype) << ", token by token";
    for (const int piece : {1060, 530, 200}) {
      EXPECT_EQ(whole, many.logits(tokens, piece)) << name_of(dtype) << ", pieces of " << piece;
    }
    for (const int prompt : {505, 1018}) {
      const int sequence = many.add_sequence();
      continue_with(many, sequence, {tokens.begin(), tokens.begin() + prompt}, shape.vocab);
      for (int at = prompt; at < prompt + 12; ++at) {
        const auto row =
            continue_with(many, sequence, {tokens[static_cast<std::size_t>(at)]}, shape.vocab);
        EXPECT_TRUE(std::equal(row.begin(), row.end(), whole.begin() + at * shape.vocab))
            << name_of(dtype) << ", token " << at;
      }
    }
  }
}

TEST(CpuBackend, ASequenceGoesOnElsewhereFromItsSavedCache) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32}) {
    const auto model = random_model(tiny_shape(), dtype, 4);
    const ModelShape& shape = model.shape;
    SingleRank first(model, {.dtype = dtype});
    SingleRank second(model, {.dtype = dtype, .num_threads = 2});
    Random random(5, dtype);
    const auto prompt = random.tokens(150, shape.vocab);
    const auto rest = random.tokens(3, shape.vocab);
    first.add_sequence_of(70);  // so that the two have other pages
    const int from = first.add_sequence();
    continue_with(first, from, prompt, shape.vocab);
    const int to = second.add_sequence_of(150);
    const std::size_t row = static_cast<std::size_t>(shape.kv_width()) * size_of(dtype);
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      for (int at = 0; at < 150; at += 37) {  // pieces that begin anywhere
        const int count = std::min(37, 150 - at);
        std::vector<std::byte> keys(static_cast<std::size_t>(count) * row);
        std::vector<std::byte> values(keys.size());
        first.finish(first.backend().save_kv(layer, first.pages_of(from), at, count, keys.data(),
                                             values.data()));
        second.finish(second.backend().load_kv(layer, second.pages_of(to), at, count, keys.data(),
                                               values.data()));
      }
    }
    EXPECT_EQ(continue_with(second, to, rest, shape.vocab),
              continue_with(first, from, rest, shape.vocab))
        << name_of(dtype);
  }
}

TEST(CpuBackend, PositionsOutsideThePagesAreRefused) {
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  SingleRank rank(model, {});
  const int sequence = rank.add_sequence_of(64);
  std::vector<float> rows(1000);
  EXPECT_THROW(rank.backend().save_kv(0, rank.pages_of(sequence), 60, 5, rows.data(), rows.data()),
               Error);
  EXPECT_THROW(rank.backend().load_kv(3, rank.pages_of(sequence), 0, 1, rows.data(), rows.data()),
               Error);
}

/// Where an error ends a pass, what its operations write to goes.
TEST(CpuBackend, NothingIsWrittenAfterItHasSettled) {
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  SingleRank rank(model, {});
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  for (int round = 0; round < 20; ++round) {
    rank.set_chunk({&piece, 1});
    rank.backend().embed(rank.chunk());
    std::vector<float> x(std::size_t{3} * 48);
    const compute::Event saved = rank.backend().save_x(rank.chunk(), x.data());
    rank.backend().start();
    rank.backend().settle();
    EXPECT_TRUE(rank.backend().done(saved));
  }
}

TEST(CpuBackend, MemoryIsAccountedFor) {
  const auto model = random_model(tiny_shape(), DType::float32, 2);
  SingleRank rank(model, {.num_pages = 10});
  const auto before = rank.backend().memory();
  EXPECT_EQ(before.kv_cache, std::int64_t{3} * 10 * 64 * 2 * 16 * 2 * 4);
  EXPECT_GT(before.weights, 50 * 48 * 4 * 2);
  rank.chunk().reserve_receive(1000);
  EXPECT_GE(rank.chunk().receive_capacity, 1000);
  EXPECT_GE(rank.backend().memory().buffers, before.buffers + 2 * 1000 * 48 * 4);
  const std::int64_t capacity = rank.chunk().receive_capacity;
  rank.chunk().reserve_receive(capacity + 1);
  EXPECT_EQ(rank.chunk().receive_capacity, 2 * capacity);
}

}  // namespace
}  // namespace atl::testing
