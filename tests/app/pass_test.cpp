#include "app/run/pass.hpp"

#include <gtest/gtest.h>

#include <optional>

namespace atl {
namespace {

using Ids = std::vector<std::int32_t>;

/// Sequences whose tokens say whose they are and where: 100 * request + position.
class PassTest : public ::testing::Test {
 protected:
  Sequence& add(std::int32_t request, int prompt_length, int cached = 0) {
    Ids prompt;
    for (int i = 0; i < prompt_length; ++i) prompt.push_back(100 * request + i);
    Sequence& sequence = sequences_.start(request, prompt, 50);
    sequence.cached = cached;
    sequence.pages.push_back(request);
    return sequence;
  }
  /// One that has generated `generated` tokens, of which the last `uncached` are still to process.
  Sequence& add_decoding(std::int32_t request, int prompt_length, int generated, int uncached = 1) {
    Sequence& sequence = add(request, prompt_length);
    for (int i = 0; i < generated; ++i)
      sequence.tokens.push_back(100 * request + prompt_length + i);
    sequence.cached = sequence.length() - uncached;
    return sequence;
  }

  /// The tokens of all chunks in order, after checks that segments cover the rows in order.
  Ids tokens() const {
    Ids all;
    for (int c = 0; c < pass_->num_chunks(); ++c) {
      const ChunkBatch& chunk = pass_->chunk(c);
      std::int32_t row = 0;
      EXPECT_EQ(chunk.segments.size(), chunk.requests.size());
      for (std::size_t s = 0; s < chunk.segments.size(); ++s) {
        const compute::Segment& segment = chunk.segments[s];
        EXPECT_EQ(segment.first_row, row);
        EXPECT_EQ(segment.pages[0], chunk.requests[s]);
        for (int i = 0; i < segment.num_rows; ++i, ++row) {
          EXPECT_EQ(chunk.tokens[static_cast<std::size_t>(row)],
                    100 * chunk.requests[s] + segment.first_position + i);
        }
      }
      EXPECT_EQ(static_cast<std::size_t>(row), chunk.tokens.size());
      all.insert(all.end(), chunk.tokens.begin(), chunk.tokens.end());
    }
    EXPECT_EQ(static_cast<std::int64_t>(all.size()), pass_->rows());
    return all;
  }
  /// Tokens at the rows whose logits are wanted.
  Ids head() const {
    Ids at;
    for (int c = 0; c < pass_->num_chunks(); ++c) {
      const ChunkBatch& chunk = pass_->chunk(c);
      for (const HeadRow& row : chunk.head) {
        at.push_back(chunk.tokens[static_cast<std::size_t>(row.row)]);
        EXPECT_EQ(sequences_.in_slot(row.slot).request, at.back() / 100);
      }
    }
    return at;
  }

  void build(int num_chunks, int max_tokens = 1000, Mode mode = Mode::generate) {
    BatchOptions options;
    options.max_chunks = num_chunks;
    options.max_sequences = 8;
    options.max_pass_tokens = max_tokens;
    options.mode = mode;
    pass_.emplace(options);
    pass_->build(sequences_, num_chunks);
  }

  Sequences sequences_{SequenceRoom{8, 100, 1}};
  std::optional<Pass> pass_;
};

TEST_F(PassTest, SequencesThatGenerateComeFirstThenPromptsInOrder) {
  add(1, 3);
  add_decoding(2, 2, 1);
  add(3, 2);
  add_decoding(4, 1, 5);
  build(1);
  EXPECT_EQ(tokens(), (Ids{202, 405, 100, 101, 102, 300, 301}));
  EXPECT_EQ(pass_->prompt_rows(), 5);
  EXPECT_EQ(head(), (Ids{202, 405, 102, 301}));
  for (const auto slot : sequences_.taken()) EXPECT_EQ(sequences_.in_slot(slot).uncached(), 0);
}

TEST_F(PassTest, WhatExceedsTheLimitStaysForTheNextPass) {
  const Sequence& first = add(1, 4);
  const Sequence& second = add(3, 2);
  add_decoding(2, 2, 1);
  build(2, 4);
  EXPECT_EQ(tokens(), (Ids{202, 100, 101, 102}));
  EXPECT_EQ(head(), Ids{202});  // of a prompt that is not through, none
  EXPECT_EQ(first.cached, 3);
  EXPECT_EQ(second.cached, 0);
  pass_->build(sequences_, 1);
  EXPECT_EQ(tokens(), (Ids{103, 300, 301}));
  EXPECT_EQ(pass_->prompt_rows(), 3);
  EXPECT_EQ(head(), (Ids{103, 301}));
}

TEST_F(PassTest, ChunksHaveTheSameRowsWhereverTheyAreCut) {
  for (int chunks = 1; chunks <= 8; ++chunks) {
    sequences_ = Sequences({8, 100, 1});
    add(1, 9);
    add_decoding(2, 2, 1);
    add(3, 5, 2);
    build(chunks);
    EXPECT_EQ(tokens(), (Ids{202, 100, 101, 102, 103, 104, 105, 106, 107, 108, 302, 303, 304}));
    EXPECT_EQ(head(), (Ids{202, 108, 304}));
    for (int c = 0; c < chunks; ++c) {
      const auto rows = static_cast<int>(pass_->chunk(c).tokens.size());
      EXPECT_GE(rows, 13 / chunks);
      EXPECT_LE(rows, 13 / chunks + 1);
    }
  }
}

TEST_F(PassTest, ASequenceThatGeneratesMayHaveSeveralRows) {
  add_decoding(2, 2, 4, 3);
  add(1, 2);
  build(2);
  EXPECT_EQ(tokens(), (Ids{203, 204, 205, 100, 101}));
  EXPECT_EQ(pass_->prompt_rows(), 2);
  EXPECT_EQ(head(), (Ids{205, 101}));
}

TEST_F(PassTest, FewRowsLeaveChunksEmpty) {
  add_decoding(1, 3, 1);
  build(3);
  EXPECT_EQ(tokens(), Ids{103});
  sequences_ = Sequences({8, 100, 1});
  build(3);  // other ranks have something to do
  EXPECT_TRUE(tokens().empty());
  EXPECT_EQ(pass_->num_chunks(), 3);
}

TEST_F(PassTest, ScoringWantsTheLogitsBeforeEveryTokenOfThePrompt) {
  add(1, 3);
  add(2, 1);
  add(3, 4, 1);
  build(2, 1000, Mode::score);
  EXPECT_EQ(tokens(), (Ids{100, 101, 102, 200, 301, 302, 303}));
  EXPECT_EQ(head(), (Ids{100, 101, 301, 302}));
  Ids targets;
  for (int c = 0; c < 2; ++c) {
    for (const HeadRow& row : pass_->chunk(c).head) targets.push_back(row.target);
  }
  EXPECT_EQ(targets, (Ids{101, 102, 302, 303}));
}

}  // namespace
}  // namespace atl
