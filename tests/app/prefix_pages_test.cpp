#include "app/run/prefix_pages.hpp"

#include <gtest/gtest.h>

#include <random>

#include "app/run/prefix_homes.hpp"
#include "tests/app/fleet.hpp"

namespace atl {
namespace {

BatchOptions sharing(Mode mode) {
  BatchOptions options;
  options.mode = mode;
  options.share_prefixes = true;
  options.max_sequences = 16;
  options.max_pass_tokens = 50;
  options.min_chunk_tokens = 4;
  options.max_chunks = 2;
  options.page_tokens = 8;
  options.num_pages = 200;
  return options;
}

std::int64_t prompt_tokens(const std::vector<io::Request>& requests) {
  std::int64_t sum = 0;
  for (const io::Request& request : requests) sum += std::ssize(request.tokens);
  return sum;
}

/// Requests with `shared` tokens in common and `own` of their own, of which the first differ.
std::vector<io::Request> continuations(int count, int shared, int own) {
  const io::Request beginning = request_of(shared, 3, 7);
  std::vector<io::Request> requests;
  for (int i = 0; i < count; ++i) {
    io::Request request = beginning;
    request.id = fmt::format("c{}", i);
    for (int t = 0; t < own; ++t) request.tokens.push_back(i + t + 1);
    requests.push_back(std::move(request));
  }
  return requests;
}

void expect_as_alone(const std::vector<io::Request>& requests, Fleet& fleet, Mode mode) {
  const auto results = fleet.run(requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    if (fleet.errors.contains(static_cast<int>(i))) continue;
    const io::Result& result = results.at(static_cast<int>(i));
    if (mode == Mode::score) {
      EXPECT_EQ(result.logprobs, expected_logprobs(requests[i])) << i;
    } else {
      EXPECT_EQ(result.tokens, expected_tokens(requests[i])) << i;
    }
  }
}

/// Whole pages, a part of a page, its first token alone, and a border between two. In scoring the
/// last common row is each request's own, since it is asked for another token.
TEST(PrefixPages, ABeginningIsComputedOnce) {
  for (const Mode mode : {Mode::generate, Mode::score}) {
    for (const int shared : {17, 40, 41, 45, 47}) {
      for (const int own : {1, 3, 8, 20}) {
        const auto requests = continuations(12, shared, own);
        Fleet fleet(requests, sharing(mode), 1);
        expect_as_alone(requests, fleet, mode);
        const std::int64_t of_others = own + (mode == Mode::score ? 1 : 0);
        const PrefixCounts counts = fleet.counts();
        EXPECT_EQ(counts.rows_computed, shared + own + 11 * of_others) << shared << " + " << own;
        EXPECT_EQ(counts.rows_saved, prompt_tokens(requests) - counts.rows_computed);
        EXPECT_EQ(counts.requests, 11);
      }
    }
  }
}

/// Of the same prompt the last token is each request's own: from there on they may differ.
TEST(PrefixPages, TheSamePromptIsComputedOnceButForItsLastToken) {
  for (const Mode mode : {Mode::generate, Mode::score}) {
    for (const int length : {20, 24, 25, 64}) {
      const std::vector<io::Request> requests(9, request_of(length, 4, 3));
      Fleet fleet(requests, sharing(mode), 1);
      expect_as_alone(requests, fleet, mode);
      EXPECT_EQ(fleet.counts().rows_computed, length + 8) << length;
    }
  }
}

TEST(PrefixPages, LittleInCommonIsNoReasonToWait) {
  const auto requests = continuations(5, 7, 30);
  Fleet fleet(requests, sharing(Mode::generate), 1);
  expect_as_alone(requests, fleet, Mode::generate);
  EXPECT_EQ(fleet.counts().rows_saved, 0);
}

TEST(PrefixPages, EachRankComputesABeginningOnce) {
  const auto requests = continuations(40, 160, 10);
  Fleet fleet(requests, sharing(Mode::generate), 3);
  expect_as_alone(requests, fleet, Mode::generate);
  EXPECT_EQ(fleet.counts().rows_computed, 3 * 160 + 40 * 10);
}

/// One request needs 21 pages, and of 12 more each 2: they fit together where shared ones count
/// once.
TEST(PrefixPages, SharedPagesCountOnceWhereRequestsAreGivenOut) {
  const auto requests = continuations(13, 160, 10);
  BatchOptions options = sharing(Mode::generate);
  options.num_pages = 22 + 12 * 2;
  Fleet fleet(requests, options, 1);
  expect_as_alone(requests, fleet, Mode::generate);
  EXPECT_EQ(fleet.most_sequences, 13);
}

/// The first to reach a token after which nothing is finite ends there; the others go on from where
/// it got to, and end as they do alone.
TEST(PrefixPages, WhatOneLeavesUndoneAnotherGoesOnWith) {
  for (const Mode mode : {Mode::generate, Mode::score}) {
    for (const int at : {3, 31, 32, 44}) {
      auto requests = continuations(7, 45, 6);
      for (io::Request& request : requests) {
        request.tokens[static_cast<std::size_t>(at)] = overflowing_token;
      }
      requests.push_back(request_of(60, 4, 5));
      BatchOptions options = sharing(mode);
      options.max_pass_tokens = 20;
      Fleet fleet(requests, options, 1);
      expect_as_alone(requests, fleet, mode);
      options.share_prefixes = false;
      Fleet alone(requests, options, 1);
      alone.run(requests);
      EXPECT_EQ(fleet.errors.size(), 7U);
      EXPECT_EQ(fleet.errors, alone.errors);
    }
  }
}

/// Prompts that branch at random places, with room for few of them at once, so that pages of
/// beginnings are dropped and computed again.
TEST(PrefixPages, ResultsAreThoseOfRequestsAloneInAnyTreeOfPrompts) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 120; ++trial) {
    const Mode mode = trial % 2 == 0 ? Mode::generate : Mode::score;
    std::vector<io::Request> requests;
    for (int i = 0; i < 40; ++i) {
      io::Request request =
          request_of(1 + static_cast<int>(random() % 70), 1 + static_cast<int>(random() % 9), i);
      if (i > 0 && random() % 5 != 0) {
        const auto& other = requests[random() % requests.size()].tokens;
        const std::size_t common = random() % (other.size() + 1);
        request.tokens.insert(request.tokens.begin(), other.begin(),
                              other.begin() + static_cast<std::ptrdiff_t>(common));
        if (request.tokens.size() > 150) request.tokens.resize(150);
      }
      if (mode == Mode::score && random() % 20 == 0) request.tokens.back() = overflowing_token;
      requests.push_back(std::move(request));
    }
    BatchOptions options = sharing(mode);
    options.max_sequences = 2 + static_cast<int>(random() % 20);
    options.max_pass_tokens = std::max(options.max_sequences, 5 + static_cast<int>(random() % 90));
    options.num_pages = 21 + static_cast<int>(random() % 60);
    Fleet fleet(requests, options, 1 + static_cast<int>(random() % 4));
    expect_as_alone(requests, fleet, mode);
    const PrefixCounts counts = fleet.counts();
    if (fleet.errors.empty()) {
      EXPECT_EQ(counts.rows_computed + counts.rows_saved, prompt_tokens(requests));
    }
    EXPECT_GT(counts.rows_saved, 0);
  }
}

TEST(PrefixPages, OtherWeightsFindNothing) {
  BatchOptions options = sharing(Mode::generate);
  PrefixPages pages(options);
  Sequences sequences({4, 100, 20});
  const auto begin = [&](std::int32_t request) -> Sequence& {
    Sequence& sequence = sequences.start(request, request_of(40, 1, 1).tokens, 1);
    pages.begin(sequence, 6);
    return sequence;
  };
  Sequence& first = begin(0);
  first.cached = 40;
  pages.release(first);
  first.request = -1;
  EXPECT_EQ(begin(1).cached, 39);
  pages.release(sequences.in_slot(1));
  pages.forget();
  EXPECT_EQ(begin(2).cached, 0);
}

TEST(PrefixHomes, ARankHasAPromptWhileARequestWithItIsUnderWay) {
  PrefixHomes homes(8);
  const auto keys = [](int length) { return page_keys(request_of(length, 1, 1).tokens, 8); };
  EXPECT_EQ(keys(23).size(), 2U);
  std::vector<HeldPrefix> held(3);
  homes.given(5, 1, keys(16));
  homes.given(6, 1, keys(40));
  homes.given(7, 2, keys(25));
  homes.held_of(keys(33), held);
  EXPECT_EQ(held[0].pages, 0);
  EXPECT_EQ(held[1].pages, 4);
  EXPECT_EQ(held[1].tokens, 32);
  EXPECT_EQ(held[2].pages, 3);
  homes.finished(6);
  homes.finished(99);
  homes.held_of(keys(33), held);
  EXPECT_EQ(held[1].pages, 2);
  homes.finished(5);
  homes.finished(7);
  homes.held_of(keys(33), held);
  EXPECT_EQ(held[1].pages + held[2].pages, 0);
}

}  // namespace
}  // namespace atl
