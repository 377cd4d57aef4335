#include "app/run/batcher.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "app/plan/update_policy.hpp"
#include "tests/app/fleet.hpp"

namespace atl {
namespace {

std::vector<io::Request> mixed_requests() {
  std::mt19937 random(5);
  std::vector<io::Request> requests;
  for (int i = 0; i < 23; ++i) {
    requests.push_back(
        request_of(1 + static_cast<int>(random() % 90), 1 + static_cast<int>(random() % 12), i));
  }
  requests.push_back(request_of(300, 5, 99));
  return requests;
}

TEST(Batcher, EveryRequestIsServedWholeWhateverTheLayout) {
  const auto requests = mixed_requests();
  for (const int ranks : {1, 2, 3, 5, 16, 40}) {
    for (const int chunks : {1, 3, 8}) {
      BatchOptions options;
      options.max_sequences = 4;
      options.max_pass_tokens = 50;
      options.min_chunk_tokens = 4;
      options.max_chunks = chunks;
      options.page_tokens = 8;
      options.num_pages = 45;  // not all requests fit at once
      const auto results = Fleet(requests, options, ranks).run(requests);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(results.at(static_cast<int>(i)).tokens, expected_tokens(requests[i]));
        EXPECT_EQ(results.at(static_cast<int>(i)).finish_reason, "length");
      }
    }
  }
}

/// A request's weights are those that computed it, from the first to the last.
TEST(Batcher, NamesTheWeightsThatComputedARequest) {
  BatchOptions options;
  options.num_pages = 8;
  const std::vector<io::Request> requests = {request_of(3, 1, 1), request_of(3, 3, 2)};
  const RequestNeeds needs = needs_of(ListedRequests(requests), true, 1000, 1, options);
  Batcher rank(options, room_for(needs, options));
  const auto pass = [&] {
    const RankLoad load = rank.load();
    ASSERT_TRUE(rank.next_pass({&load, 1}));
    for (int c = 0; c < rank.num_chunks(); ++c) {
      rank.chunk(c).sampled.assign(rank.chunk(c).head.size(), {7, -1.0F});
    }
    rank.finish_pass(0);
  };
  rank.begin_weights("a");
  rank.take_up({0, 0, requests[0]});
  rank.take_up({1, 0, requests[1]});
  pass();
  rank.begin_weights("b");
  rank.take_up({2, 0, requests[0]});
  pass();
  rank.begin_weights("c");
  pass();
  std::map<int, std::string> weights;
  for (const FinishedRequest& done : rank.finished()) weights[done.request] = done.weights;
  EXPECT_EQ(weights, (std::map<int, std::string>{{0, "a"}, {1, "a,b,c"}, {2, "b"}}));
}

TEST(RequestQueue, WhileAnUpdateWaitsOnlyWhatARunHasBegunIsGivenOut) {
  BatchOptions options;
  options.num_pages = 8;
  ListedRequests requests({request_of(3, 2, 1), request_of(3, 2, 2)});
  const std::vector<KeptProgress> kept = {{}, {.cached = 3, .generated = 1}};
  RequestQueue queue(requests, kept, options, "");
  std::vector<RankLoad> loads(1);
  loads[0].free_pages = 8;
  loads[0].free_sequences = 4;
  loads[0].update = static_cast<std::int32_t>(UpdatePhase::ready);
  auto grants = queue.grant(loads);
  ASSERT_EQ(grants.size(), 1U);
  EXPECT_EQ(grants[0].admitted.request, 1);
  loads[0].update = 0;
  grants = queue.grant(loads);
  ASSERT_EQ(grants.size(), 1U);
  EXPECT_EQ(grants[0].admitted.request, 0);
}

TEST(RequestQueue, WhileAnUpdateWaitsALineThatHasBegunIsGivenOut) {
  BatchOptions options;
  options.num_pages = 8;
  std::vector<io::Request> parts(4, request_of(3, 2, 1));
  for (int part = 0; part < 3; ++part) {
    parts[static_cast<std::size_t>(part)].parts = 3;
    parts[static_cast<std::size_t>(part)].part = part;
  }
  ListedRequests requests(parts);
  RequestQueue queue(requests, {}, options, "");
  std::vector<RankLoad> loads(1);
  loads[0].free_pages = 8;
  loads[0].free_sequences = 1;
  EXPECT_FALSE(queue.line_begun());
  EXPECT_EQ(queue.grant(loads).size(), 1U);
  EXPECT_TRUE(queue.line_begun());
  loads[0].free_sequences = 4;
  loads[0].update = static_cast<std::int32_t>(UpdatePhase::ready);
  loads[0].line_begun = 1;
  const auto grants = queue.grant(loads);
  ASSERT_EQ(grants.size(), 2U);
  EXPECT_EQ(grants[1].admitted.request, 2);
  EXPECT_FALSE(queue.line_begun());
}

TEST(Batcher, ScoringAsksForEveryTokenButTheFirst) {
  auto requests = mixed_requests();
  requests.push_back(request_of(1, 1, 7));  // nothing to score
  for (const int ranks : {1, 3}) {
    BatchOptions options;
    options.mode = Mode::score;
    options.max_sequences = 3;
    options.max_pass_tokens = 40;
    options.min_chunk_tokens = 8;
    options.max_chunks = 4;
    options.page_tokens = 16;
    options.num_pages = 30;
    const auto results = Fleet(requests, options, ranks).run(requests);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(results.at(static_cast<int>(i)).logprobs, expected_logprobs(requests[i]));
    }
  }
}

TEST(Batcher, StopsAtAStopTokenAndLeavesItOut) {
  std::vector<io::Request> requests = {request_of(5, 20, 1)};
  const auto all = expected_tokens(requests[0]);
  requests[0].stop_token_ids = {all[6]};
  std::size_t first = 0;
  while (all[first] != all[6]) ++first;
  BatchOptions options;
  options.num_pages = 4;
  const auto results = Fleet(requests, options, 2).run(requests);
  EXPECT_EQ(results.at(0).finish_reason, "stop");
  EXPECT_EQ(
      results.at(0).tokens,
      std::vector<std::int32_t>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(first)));
}

/// A request ends with an error at the first position whose logits are not finite, the same in
/// every layout, and gives its pages back; the others get what they get without it.
TEST(Batcher, WhatIsNotFiniteEndsItsRequestAlone) {
  auto requests = mixed_requests();
  requests[3].tokens = request_of(80, 1, 3).tokens;
  requests[3].tokens[33] = overflowing_token;
  requests[23].tokens[299] = overflowing_token;
  for (const Mode mode : {Mode::generate, Mode::score}) {
    for (const int ranks : {1, 3}) {
      for (const int chunks : {1, 4}) {
        for (const int pass_tokens : {7, 400}) {
          BatchOptions options;
          options.mode = mode;
          options.max_sequences = 5;
          options.max_pass_tokens = pass_tokens;
          options.min_chunk_tokens = 1;
          options.max_chunks = chunks;
          options.page_tokens = 8;
          options.num_pages = 60;
          options.dtype = DType::float16;
          Fleet fleet(requests, options, ranks);
          const auto results = fleet.run(requests);
          if (mode == Mode::score) {  // nothing is asked of the last token
            ASSERT_EQ(fleet.errors.size(), 1U);
            EXPECT_TRUE(
                fleet.errors.at(3).starts_with("the logits at position 33 (token 34 of "
                                               "the prompt's 80) are not finite: "));
            EXPECT_EQ(results.at(23).logprobs.size(), 299U);
            continue;
          }
          ASSERT_EQ(fleet.errors.size(), 2U);
          EXPECT_TRUE(fleet.errors.at(3).starts_with("the logits at position 79 (token 80 of"));
          EXPECT_TRUE(fleet.errors.at(23).starts_with("the logits at position 299 (token 300 of"));
          for (std::size_t i = 0; i < requests.size(); ++i) {
            if (fleet.errors.contains(static_cast<int>(i))) continue;
            EXPECT_EQ(results.at(static_cast<int>(i)).tokens, expected_tokens(requests[i]));
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace atl
