#pragma once
// Batchers of several ranks in one process, with a model whose outcomes are functions of the whole
// prefix: a piece that was skipped, repeated or mixed up with another sequence changes a result.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "app/run/batcher.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"

namespace atl {

inline io::Request request_of(int length, int max_tokens, int base) {
  io::Request request;
  request.id = fmt::format("r{}", base);
  for (int i = 0; i < length; ++i) request.tokens.push_back((base * 31 + i) % 200 + 1);
  request.max_tokens = max_tokens;
  return request;
}

inline std::uint32_t hash_of(const std::vector<std::int32_t>& prefix) {
  std::uint32_t hash = 17;
  for (const auto token : prefix) hash = hash * 31 + static_cast<std::uint32_t>(token);
  return hash;
}

inline std::int32_t next_token(const std::vector<std::int32_t>& prefix) {
  return static_cast<std::int32_t>(hash_of(prefix) % 199) + 1;
}

inline float logprob_of(const std::vector<std::int32_t>& prefix, std::int32_t target) {
  return -static_cast<float>((hash_of(prefix) * 31 + static_cast<std::uint32_t>(target)) % 4096);
}

/// A token after which no logit is finite.
inline constexpr std::int32_t overflowing_token = 250;

/// Ranks in one process: keys and values are the tokens stored by (rank, page, offset).
class Fleet {
 public:
  Fleet(const std::vector<io::Request>& requests, const BatchOptions& options, int ranks)
      : options_(options), cache_(static_cast<std::size_t>(ranks)) {
    const RequestNeeds needs = needs_of(ListedRequests(requests), true, 1000, ranks, options);
    for (int rank = 0; rank < ranks; ++rank) {
      pages_.push_back(std::make_shared<PrefixPages>(
          options, [this, rank](std::int32_t from, std::int32_t to, std::int32_t rows) {
            auto& cache = cache_[static_cast<std::size_t>(rank)];
            for (std::int32_t row = 0; row < rows; ++row) cache[{to, row}] = cache.at({from, row});
          }));
      ranks_.push_back(
          std::make_unique<Batcher>(options, room_for(needs, options), Restore(), pages_.back()));
    }
  }

  std::map<int, io::Result> run(const std::vector<io::Request>& requests) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
      prompt_length_[static_cast<std::int32_t>(i)] = std::ssize(requests[i].tokens);
    }
    ListedRequests listed(requests);
    RequestQueue queue(listed, {}, options_, "");
    for (int pass = 0;; ++pass) {
      EXPECT_LT(pass, 100000);
      std::vector<RankLoad> loads;
      for (const auto& rank : ranks_) {
        rank->take_shared();
        rank->look_ahead();
        loads.push_back(rank->load());
        most_sequences = std::max(most_sequences, loads.back().sequences);
      }
      queue.finished(finished_since());
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
      ++passes;
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

  /// Of all ranks.
  PrefixCounts counts() const {
    PrefixCounts sum;
    for (const auto& pages : pages_) {
      sum.requests += pages->counts().requests;
      sum.rows_saved += pages->counts().rows_saved;
      sum.rows_copied += pages->counts().rows_copied;
      sum.rows_computed += pages->counts().rows_computed;
      sum.pages_dropped += pages->counts().pages_dropped;
    }
    return sum;
  }

  std::map<int, std::string> errors;  ///< of the requests that failed
  std::int32_t most_sequences = 0;    ///< on one rank at once
  int passes = 0;
  /// Whether the logits after these tokens are not finite; of how many rows they were not.
  std::function<bool(const std::vector<std::int32_t>&)> overflows =
      [](const std::vector<std::int32_t>& prefix) {
        return std::count(prefix.begin(), prefix.end(), overflowing_token) > 0;
      };
  int overflowed = 0;
  std::function<std::int32_t(const std::vector<std::int32_t>&)> model = next_token;

  SpeculationCounts speculation() const {
    SpeculationCounts sum;
    for (const auto& rank : ranks_) {
      sum.alone += rank->speculation().alone;
      sum.proposed += rank->speculation().proposed;
      sum.accepted += rank->speculation().accepted;
    }
    return sum;
  }

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
        const bool bad = overflows(prefix_at[head.row]);
        if (bad) ++overflowed;
        if (options_.mode == Mode::score) {
          chunk.scored.push_back(
              {bad ? std::nanf("") : logprob_of(prefix_at[head.row], head.target), 0});
        } else {
          const auto prompt = prompt_length_.at(request_at(chunk, head.row));
          EXPECT_EQ(rank.sampling_of(head).index, std::ssize(prefix_at[head.row]) - prompt);
          chunk.sampled.push_back({bad ? -1 : model(prefix_at[head.row]), -1.0F});
        }
      }
    }
    EXPECT_LE(rows, options_.max_pass_tokens);
    rank.finish_pass(0);
  }

  static std::int32_t request_at(const ChunkBatch& chunk, std::int32_t row) {
    std::size_t i = 0;
    while (chunk.segments[i].first_row + chunk.segments[i].num_rows <= row) ++i;
    return chunk.requests[i];
  }

  /// Requests that have ended since the last call, as rank 0 hears of them.
  std::vector<std::int32_t> finished_since() {
    std::vector<std::int32_t> ended;
    for (const auto& rank : ranks_) {
      for (const FinishedRequest& done : rank->finished()) {
        if (told_.insert(done.request).second) ended.push_back(done.request);
      }
    }
    return ended;
  }

  std::int32_t& store(std::size_t r, const compute::Segment& segment, std::int32_t position) {
    const auto page = segment.pages[position / options_.page_tokens];
    EXPECT_LT(page, options_.num_pages);
    return cache_[r][{page, position % options_.page_tokens}];
  }

  BatchOptions options_;
  std::vector<std::shared_ptr<PrefixPages>> pages_;
  std::vector<std::unique_ptr<Batcher>> ranks_;
  std::set<std::int32_t> told_;
  std::map<std::int32_t, std::ptrdiff_t> prompt_length_;
  std::vector<std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t>> cache_;
};

inline std::vector<std::int32_t> expected_tokens(
    const io::Request& request,
    const std::function<std::int32_t(const std::vector<std::int32_t>&)>& model = next_token) {
  auto tokens = request.tokens;
  for (int i = 0; i < *request.max_tokens; ++i) tokens.push_back(model(tokens));
  return {tokens.begin() + static_cast<std::ptrdiff_t>(request.tokens.size()), tokens.end()};
}

/// [tokens but the first]
inline std::vector<float> expected_logprobs(const io::Request& request) {
  std::vector<std::int32_t> prefix;
  std::vector<float> logprobs;
  for (const std::int32_t token : request.tokens) {
    if (!prefix.empty()) logprobs.push_back(logprob_of(prefix, token));
    prefix.push_back(token);
  }
  return logprobs;
}

}  // namespace atl
