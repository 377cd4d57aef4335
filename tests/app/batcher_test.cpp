#include "app/run/batcher.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <random>
#include <set>

#include "app/plan/update_policy.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"

namespace atl {
namespace {

io::Request request_of(int length, int max_tokens, int base) {
  io::Request request;
  request.id = fmt::format("r{}", base);
  for (int i = 0; i < length; ++i) request.tokens.push_back((base * 31 + i) % 200 + 1);
  request.max_tokens = max_tokens;
  return request;
}

/// A model whose next token is a function of the whole prefix, so that a piece that was skipped,
/// repeated or mixed up with another sequence changes the result.
std::int32_t next_token(const std::vector<std::int32_t>& prefix) {
  std::uint32_t hash = 17;
  for (const auto token : prefix) hash = hash * 31 + static_cast<std::uint32_t>(token);
  return static_cast<std::int32_t>(hash % 199) + 1;
}

/// A token after which no logit is finite.
constexpr std::int32_t overflowing_token = 250;

/// Ranks in one process: keys and values are the tokens stored by (rank, page, offset).
class Fleet {
 public:
  Fleet(const std::vector<io::Request>& requests, const BatchOptions& options, int ranks)
      : options_(options), cache_(static_cast<std::size_t>(ranks)) {
    const RequestNeeds needs = needs_of(requests, true, 1000, ranks, options);
    for (int rank = 0; rank < ranks; ++rank) {
      ranks_.push_back(std::make_unique<Batcher>(options, room_for(needs, options)));
    }
  }

  std::map<int, io::Result> run(std::vector<io::Request> requests) {
    RequestQueue queue(requests, {}, options_, "");
    for (int pass = 0;; ++pass) {
      EXPECT_LT(pass, 100000);
      std::vector<RankLoad> loads;
      for (const auto& rank : ranks_) loads.push_back(rank->load());
      for (RequestQueue::Grant& grant : queue.grant(loads)) {
        std::string message;
        append_to(message, grant.admitted);
        for (Admitted& admitted : admitted_from(message)) {
          ranks_[static_cast<std::size_t>(grant.rank)]->take_up(std::move(admitted));
        }
      }
      bool more = false;
      std::set<int> chunk_counts;
      for (std::size_t r = 0; r < ranks_.size(); ++r) {
        more = ranks_[r]->next_pass(loads);
        chunk_counts.insert(ranks_[r]->num_chunks());
      }
      if (!more) break;
      EXPECT_EQ(chunk_counts.size(), 1U);
      for (std::size_t r = 0; r < ranks_.size(); ++r) compute(r);
    }
    std::map<int, io::Result> results;
    for (const auto& rank : ranks_) {
      for (auto& done : rank->finished()) {
        EXPECT_TRUE(results.emplace(done.request, done.result).second) << "finished twice";
        if (!done.error.empty()) errors[done.request] = done.error;
      }
    }
    EXPECT_EQ(results.size(), requests.size());
    for (const auto& rank : ranks_) EXPECT_EQ(rank->load().free_pages, options_.num_pages);
    return results;
  }

  std::map<int, std::string> errors;  ///< of the requests that failed

 private:
  void compute(std::size_t r) {
    Batcher& rank = *ranks_[r];
    std::int64_t rows = 0;
    for (int c = 0; c < rank.num_chunks(); ++c) {
      ChunkBatch& chunk = rank.chunk(c);
      rows += static_cast<std::int64_t>(chunk.tokens.size());
      std::int32_t row = 0;
      std::map<std::int32_t, std::vector<std::int32_t>> prefix_at;  // row -> its prefix
      for (const compute::Segment& segment : chunk.segments) {
        EXPECT_EQ(segment.first_row, row);
        for (std::int32_t i = 0; i < segment.num_rows; ++i, ++row) {
          const auto position = segment.first_position + i;
          store(r, segment, position) = chunk.tokens[static_cast<std::size_t>(row)];
          auto& prefix = prefix_at[row];
          for (std::int32_t p = 0; p <= position; ++p) prefix.push_back(store(r, segment, p));
        }
      }
      EXPECT_EQ(row, static_cast<std::int32_t>(chunk.tokens.size()));
      for (const HeadRow& head : chunk.head) {
        const bool bad = std::count(prefix_at[head.row].begin(), prefix_at[head.row].end(),
                                    overflowing_token) > 0;
        if (options_.mode == Mode::score) {
          const bool right = head.target == next_target(prefix_at[head.row]);
          chunk.scored.push_back({bad ? std::nanf("") : static_cast<float>(right), right ? 1 : 0});
        } else {
          chunk.sampled.push_back({bad ? -1 : next_token(prefix_at[head.row]), -1.0F});
        }
      }
    }
    EXPECT_LE(rows, options_.max_pass_tokens);
    rank.finish_pass(0);
  }

  static std::int32_t next_target(const std::vector<std::int32_t>& prefix) {
    return (prefix.back() - 1 + 1) % 200 + 1;  // request_of counts upwards
  }

  std::int32_t& store(std::size_t r, const compute::Segment& segment, std::int32_t position) {
    const auto page = segment.pages[position / options_.page_tokens];
    EXPECT_LT(page, options_.num_pages);
    return cache_[r][{page, position % options_.page_tokens}];
  }

  BatchOptions options_;
  std::vector<std::unique_ptr<Batcher>> ranks_;
  std::vector<std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t>> cache_;
};

std::vector<std::int32_t> expected_tokens(const io::Request& request) {
  auto tokens = request.tokens;
  for (int i = 0; i < *request.max_tokens; ++i) tokens.push_back(next_token(tokens));
  return {tokens.begin() + static_cast<std::ptrdiff_t>(request.tokens.size()), tokens.end()};
}

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
  const RequestNeeds needs = needs_of(requests, true, 1000, 1, options);
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
  std::vector<io::Request> requests = {request_of(3, 2, 1), request_of(3, 2, 2)};
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
      const auto& logprobs = results.at(static_cast<int>(i)).logprobs;
      ASSERT_EQ(logprobs.size(), requests[i].tokens.size() - 1);
      for (const float hit : logprobs) EXPECT_EQ(hit, 1.0F);
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
