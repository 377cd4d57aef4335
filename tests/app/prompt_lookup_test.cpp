#include "app/run/prompt_lookup.hpp"

#include <gtest/gtest.h>

#include <random>

#include "tests/app/fleet.hpp"

namespace atl {
namespace {

using Tokens = std::vector<std::int32_t>;

Tokens proposed(PromptLookup& lookup, const Tokens& tokens, int room = 100) {
  Tokens found;
  lookup.propose(tokens, room, found);
  return found;
}

TEST(PromptLookup, ProposesWhatFollowedTheLastTokensBefore) {
  PromptLookup lookup(4, 100);
  lookup.begin();
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 8, 1, 2}), Tokens());  // two are too few
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3}), (Tokens{4, 5}));
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3}, 1), (Tokens{4}));
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3}, 0), Tokens());
  lookup.judge(2, 2);
  // The last time counts.
  EXPECT_EQ(proposed(lookup, {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 9, 9, 1, 2, 3}),
            (Tokens{9, 9, 1, 2}));
  lookup.begin();
  lookup.judge(2, 2);
  EXPECT_EQ(proposed(lookup, {7, 5, 6, 5, 6, 5}), (Tokens{6, 5, 6, 5}));  // goes on in itself
}

TEST(PromptLookup, ProposesLessWhereItIsWrong) {
  PromptLookup lookup(8, 100);
  lookup.begin();
  Tokens tokens;
  for (int i = 0; i < 40; ++i) tokens.push_back(i % 20);
  std::size_t rows = 0;
  for (int pass = 0; pass < 400; ++pass) {
    const Tokens found = proposed(lookup, tokens);
    rows += found.size();
    lookup.judge(static_cast<int>(found.size()), 0);
  }
  EXPECT_GE(rows, 2U + 1U + 1U);
  EXPECT_LE(rows, 2U + 1U + 1U + 6U);
  while (proposed(lookup, tokens).empty()) {
  }
  lookup.judge(1, 1);
  EXPECT_EQ(proposed(lookup, tokens).size(), 2U);
}

BatchOptions guessing(int speculate) {
  BatchOptions options;
  options.speculate = speculate;
  options.max_sequences = 6;
  options.max_pass_tokens = 40;
  options.min_chunk_tokens = 3;
  options.max_chunks = 3;
  options.page_tokens = 8;
  options.num_pages = 120;
  return options;
}

/// Text that repeats itself, with a slip now and then.
std::int32_t copying(const Tokens& prefix) {
  constexpr std::size_t period = 13;
  if (prefix.size() < period || prefix.size() % 29 == 0) return next_token(prefix);
  return prefix[prefix.size() - period];
}

/// The same tokens as without, each drawn with the number of those before it, whatever the layout.
TEST(Speculation, ChangesNoToken) {
  std::mt19937 random(2);
  std::vector<io::Request> requests;
  for (int i = 0; i < 20; ++i) {
    requests.push_back(
        request_of(1 + static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 60), i));
    if (i % 4 != 0) continue;
    const auto all = expected_tokens(requests.back(), copying);
    requests.back().stop_token_ids = {all[all.size() / 2]};
  }
  std::map<int, io::Result> expected;
  int passes = 0;
  for (const int speculate : {0, 1, 5, 30}) {
    for (const int ranks : {1, 3}) {
      Fleet fleet(requests, guessing(speculate), ranks);
      fleet.model = copying;
      const auto results = fleet.run(requests);
      if (expected.empty()) {
        expected = results;
        passes = fleet.passes;
      }
      for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(results.at(i).tokens, expected.at(i).tokens) << speculate;
        EXPECT_EQ(results.at(i).finish_reason, expected.at(i).finish_reason);
        EXPECT_EQ(results.at(i).logprobs.size(), results.at(i).tokens.size());
      }
      const SpeculationCounts counts = fleet.speculation();
      EXPECT_EQ(counts.accepted > 0, speculate > 0);
      EXPECT_LE(counts.accepted, counts.proposed);
      if (speculate == 5 && ranks == 1) {
        EXPECT_LT(fleet.passes, passes * 3 / 4);
      }
    }
  }
}

/// The guess is a token after which nothing is finite, and the model takes another.
TEST(Speculation, WhatFollowsAWrongGuessIsNoMatter) {
  io::Request request = request_of(3, 12, 1);
  request.tokens = {1, 2, 3, 4, 1, 2, 3};
  const auto model = [](const Tokens& prefix) {
    return prefix.size() == 7 ? 4 : prefix.size() == 8 ? 9 : 5;
  };
  const auto alone = expected_tokens(request, model);
  Fleet fleet({request}, guessing(4), 1);
  fleet.model = model;
  fleet.overflows = [](const Tokens& prefix) {
    // Of guesses alone: 1 after the 4 that is drawn, where 9 is.
    return prefix.size() > 8 && prefix[8] == 1;
  };
  const auto results = fleet.run({request});
  EXPECT_TRUE(fleet.errors.empty());
  EXPECT_EQ(results.at(0).tokens, alone);
  EXPECT_GT(fleet.overflowed, 0);
}

}  // namespace
}  // namespace atl
