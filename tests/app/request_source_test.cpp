// Requests that are served while others are still read.
#include "app/run/request_source.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "app/run/admitted.hpp"
#include "app/run/identity.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"
#include "compute/error.hpp"
#include "io/openai_batch.hpp"
#include "tests/fixtures.hpp"

namespace atl {
namespace {

io::RequestLimits limits() {
  io::RequestLimits limits;
  limits.vocab = 256;
  limits.max_positions = 100;
  limits.default_max_tokens = 10;
  return limits;
}

class Source : public FolderTest {
 protected:
  /// `count` requests, id 0, 1, ...; of `lines` other text in place of the request of that number.
  std::string write(std::int64_t count, const std::map<std::int64_t, std::string>& lines = {}) {
    const std::string file = (folder_ / "requests.jsonl").string();
    std::ofstream out(file);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto other = lines.find(i);
      if (other != lines.end()) {
        out << other->second << "\n";
      } else {
        out << R"({"id":")" << i << R"(","prompt":"p)" << i << "\"}\n";
      }
    }
    return file;
  }
  static std::string id_at(RequestSource& source, std::int64_t i) {
    return source.whole(static_cast<std::size_t>(i)).id;
  }
  /// By line.
  static std::map<std::int64_t, std::string> errors_of(RequestSource& source) {
    std::map<std::int64_t, std::string> errors;
    for (const Refused& refused : source.take_refused()) {
      errors[refused.line] = *io::error_in(refused.result);
    }
    return errors;
  }
};

constexpr auto judged = static_cast<std::int64_t>(io::judged_requests);

TEST_F(Source, GivesTheBeginningAtOnceAndTheRestInOrder) {
  RequestSource source(write(3 * judged), limits(), std::nullopt);
  EXPECT_EQ(source.num_taken(), judged + 1);
  EXPECT_FALSE(source.all_taken());
  while (source.take_more()) {
  }
  EXPECT_TRUE(source.all_taken());
  ASSERT_EQ(source.num_taken(), 3 * judged);
  for (const std::int64_t i : {std::int64_t{0}, judged, judged + 1, 3 * judged - 1}) {
    EXPECT_EQ(id_at(source, i), std::to_string(i));
    EXPECT_EQ(static_cast<std::int64_t>(source[static_cast<std::size_t>(i)].line), i + 1);
  }
}

TEST_F(Source, KnowsThatAFileEndsWithItsBeginning) {
  for (const std::int64_t count : {std::int64_t{1}, judged}) {
    RequestSource source(write(count), limits(), std::nullopt);
    EXPECT_TRUE(source.all_taken());
    EXPECT_EQ(source.num_taken(), count);
    EXPECT_FALSE(source.take_more());
  }
}

TEST_F(Source, HasErrorsOfLaterLinesAsTheirOwn) {
  const std::string file =
      write(2 * judged, {{judged + 5, "{broken"}, {judged + 7, R"({"id":"3","prompt":"again"})"}});
  RequestSource source(file, limits(), std::nullopt);
  source.take_all();
  auto errors = errors_of(source);
  EXPECT_EQ(errors.size(), 2U);
  EXPECT_NE(errors[judged + 6].find("not valid JSON"), std::string::npos);
  EXPECT_NE(errors[judged + 8].find("\"id\" \"3\" is that of line 4 already"), std::string::npos);
}

TEST_F(Source, WhatTheBeginningSaysOfTheFileHoldsForAllOfIt) {
  std::map<std::int64_t, std::string> lines;
  for (std::int64_t i = 0; i < judged; ++i) {
    lines[i] = R"({"id":")" + std::to_string(i) + R"(","prompt":"p"},)";
  }
  RequestSource source(write(judged + 50, lines), limits(), std::nullopt);
  source.take_all();
  ASSERT_EQ(source.num_taken(), judged + 50);
  auto errors = errors_of(source);
  EXPECT_EQ(std::ssize(errors), judged + 50);
  EXPECT_NE(errors[judged + 50].find("looks like a list"), std::string::npos);
}

TEST_F(Source, JudgesFewerLongPromptsAndEncodesThemAll) {
  std::map<std::int64_t, std::string> lines;
  const std::string prompt(4096, 'p');
  for (std::int64_t i = 0; i < judged; ++i) {
    lines[i] = R"({"id":")" + std::to_string(i) + R"(","prompt":")" + prompt + "\"}";
  }
  io::RequestLimits long_enough = limits();
  long_enough.max_positions = 5000;
  RequestSource source(write(judged, lines), long_enough, std::nullopt);
  // 16 MiB of lines, each some bytes longer than its prompt.
  EXPECT_LE(source.num_taken(), 4096 + 1);
  EXPECT_GT(source.num_taken(), 4000);
  source.take_all();
  ASSERT_EQ(source.num_taken(), judged);
  for (std::size_t i = 0; i < source.size(); ++i) {
    const io::Request request = source.give(i);
    ASSERT_EQ(request.error, "");
    ASSERT_EQ(request.tokens.size(), prompt.size());
    ASSERT_FALSE(request.prompt);
  }
}

TEST_F(Source, TakesBatchLinesBeyondTheBeginning) {
  const auto line = [](std::int64_t i) {
    return R"({"custom_id":")" + std::to_string(i) + R"(","body":{"model":"m","prompt":"x"}})";
  };
  std::map<std::int64_t, std::string> lines;
  for (std::int64_t i = 0; i < judged + 600; ++i) lines[i] = line(i);
  const std::string all_good = write(judged + 600, lines);
  RequestSource good(all_good, limits(), std::nullopt);
  good.take_all();
  lines[judged + 300] = "{broken";
  lines[judged + 400] = R"({"id":"own","prompt":"x"})";
  RequestSource source(write(judged + 600, lines), limits(), std::nullopt);
  source.take_all();
  ASSERT_EQ(source.num_taken(), judged + 600);
  for (const Refused& refused : source.take_refused()) {
    ASSERT_TRUE(refused.line == judged + 301 || refused.line == judged + 401) << refused.line;
    ASSERT_TRUE(io::is_batch_result(refused.result));
  }
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i].usable == 0) continue;
    ASSERT_EQ(source.whole(i).batch->model, "m");
  }
  EXPECT_NE(source.facts().text, good.facts().text);
}

TEST_F(Source, OfAShardHasItsRequestsAndCountsAll) {
  const Shard shard{1, 3};
  RequestSource source(write(2 * judged), limits(), shard);
  source.take_all();
  EXPECT_EQ(source.num_taken(), 2 * judged);
  EXPECT_EQ(static_cast<std::int64_t>(source.size()), shard.share_of(2 * judged));
  EXPECT_EQ(id_at(source, 0), "1");
  EXPECT_EQ(id_at(source, 5000), "15001");
}

TEST_F(Source, ComparesWithARunThatHadReadLess) {
  const std::string drawing = R"({"id":"draws","prompt":"x","temperature":1})";
  const std::string file = write(2 * judged, {{judged + 100, drawing}});
  RequestSource less(file, limits(), std::nullopt);
  const InputFacts some = less.facts();
  EXPECT_NE(some.text.find(" of the first 10001"), std::string::npos) << some.text;
  EXPECT_FALSE(some.draws_from_job_seed);
  RequestSource more(file, limits(), std::nullopt);
  more.take_all();
  EXPECT_EQ(more.facts_like(some.text).text, some.text);
  EXPECT_FALSE(more.facts_like(some.text).draws_from_job_seed);
  EXPECT_TRUE(more.facts().draws_from_job_seed);
  EXPECT_EQ(more.facts().text.find(" of the first "), std::string::npos);
  EXPECT_EQ(more.facts_like(more.facts().text).text, more.facts().text);

  RequestSource other(write(2 * judged, {{7, R"({"id":"7","prompt":"other"})"}}), limits(),
                      std::nullopt);
  EXPECT_NE(other.facts().text, some.text);
  RequestSource shorter(write(50), limits(), std::nullopt);
  EXPECT_NE(shorter.facts_like(some.text).text, some.text);
}

TEST_F(Source, IsLeftWhileItReads) {
  const std::string file = write(5 * judged);
  for (int i = 0; i < 20; ++i) RequestSource source(file, limits(), std::nullopt);
}

/// Lines of all kinds, of which next to none is held.
TEST_F(Source, ReadsAgainWhatItDoesNotHold) {
  std::map<std::int64_t, std::string> lines;
  lines[3] = "";
  lines[judged + 2] = R"({"id":"samples","prompt":"s","n":3,"seed":7,"temperature":1})";
  lines[judged + 9] = "{broken";
  lines[judged + 11] = R"({"id":"bias","tokens":[1,2],"logit_bias":{"5":1},"stop":["x","y"]})";
  const std::string file = write(judged + 600, lines);
  for (const auto& shard : {std::optional<Shard>(), std::optional(Shard{1, 3})}) {
    RequestSource held(file, limits(), shard);
    RequestSource source(file, limits(), shard, false, 2000);
    held.take_all();
    source.take_all();
    EXPECT_LT(source.num_held(), 10U);
    ASSERT_EQ(held.size(), source.size());
    // Some of them early, as a run does that goes on with what was under way.
    for (const std::size_t early : {held.size() - 1, held.size() / 2}) {
      EXPECT_EQ(identity_text(source.give(early)), identity_text(held.give(early)));
    }
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (held[i].usable == 0 || held[i].done == 1) continue;
      source.expect({static_cast<std::int32_t>(i)});
      ASSERT_EQ(identity_text(source.give(i)), identity_text(held.give(i))) << i;
    }
    EXPECT_EQ(source.num_held(), 0U);
  }
}

TEST_F(Source, SaysThatAFileHasChangedWhileItWasServed) {
  const std::string file = write(judged);
  RequestSource source(file, limits(), std::nullopt, false, 0);
  source.take_all();
  EXPECT_EQ(id_at(source, 5), "5");
  write(judged, {{7000, R"({"id":"7000","prompt":"other"})"}, {7200, "{"}});
  EXPECT_EQ(id_at(source, 6), "6");
  for (const std::size_t changed : {7000U, 7200U, 7300U}) {
    EXPECT_THROW(source.whole(changed), Error) << changed;
  }
  std::filesystem::resize_file(file, 100);
  EXPECT_THROW(source.whole(static_cast<std::size_t>(judged) - 1), Error);
}

TEST_F(Source, FeedsAQueueInOrderWhoeverHasRoom) {
  const std::string file = write(2 * judged, {{judged + 5, "{broken"}});
  RequestSource source(file, limits(), std::nullopt);
  BatchOptions options;
  options.max_tokens = 10;
  options.num_pages = 8;
  RequestQueue queue(source, {}, options, "", [&] { return source.take_more(); });
  std::int32_t next = 0;
  while (queue.wait_for_next()) {
    std::vector<RankLoad> loads(2);
    for (RankLoad& load : loads) load.free_pages = load.free_sequences = 3;
    const auto grants = queue.grant(loads);
    ASSERT_FALSE(grants.empty());
    EXPECT_LE(grants.size(), 6U);
    for (const RequestQueue::Grant& grant : grants) {
      if (next == judged + 5) ++next;
      EXPECT_EQ(grant.admitted.request, next);
      EXPECT_EQ(grant.admitted.asked.id, std::to_string(next));
      EXPECT_FALSE(grant.admitted.asked.tokens.empty());
      ++next;
    }
  }
  EXPECT_EQ(next, 2 * judged);
  EXPECT_EQ(queue.work(), 0);
}

TEST(Needs, OfRequestsStillToComeAreWhatTheModelAllows) {
  std::vector<io::Request> requests(3);
  for (io::Request& request : requests) request.tokens.resize(10);
  BatchOptions options;
  options.max_tokens = 20;
  const RequestNeeds all = needs_of(ListedRequests(requests), true, 1000, 2, options);
  EXPECT_EQ(all.count, 3);
  EXPECT_EQ(all.longest, 30);
  EXPECT_EQ(all.pages.largest, 1);
  const RequestNeeds some = needs_of(ListedRequests(requests), false, 1000, 2, options);
  EXPECT_GT(some.count, 1000000000);
  EXPECT_EQ(some.longest, 1000);
  EXPECT_EQ(some.pages.largest, 16);
  EXPECT_EQ(some.pages.useful, 16);
  options.num_pages = 4;  // a longer one will be refused
  EXPECT_EQ(room_for(some, options).longest, 4 * options.page_tokens);
}

TEST(Admitted, ArrivesAsItWasSent) {
  Admitted first;
  first.request = 7;
  first.cached = 3;
  first.asked.line = 1LL << 40;
  first.asked.id = std::string("a\0b", 3);
  first.asked.tokens = {1, 2, 250};
  first.asked.temperature = 0.7;
  first.asked.top_p = 0.9;
  first.asked.seed = ~0ULL;
  first.asked.own_seed = true;
  first.asked.stop_token_ids = {10};
  first.asked.batch = {"a model", true, true, true, "its prompt"};
  first.asked.top_k = 5;
  first.asked.min_p = 0.25;
  first.asked.repetition_penalty = 1.25;
  first.asked.presence_penalty = -1;
  first.asked.frequency_penalty = 2;
  first.asked.logit_bias = {{1, -0.5F}, {7, 3.0F}};
  first.asked.top_logprobs = 3;
  first.asked.min_tokens = 2;
  first.asked.stop = {"a", std::string("b\0c", 3)};
  first.asked.parts = 4;
  first.asked.part = 3;
  first.asked.scored_from = 2;
  Admitted second;
  second.asked.id = "none";
  second.asked.max_tokens = 4;
  second.asked.batch.emplace();
  Admitted third;
  std::string text;
  append_to(text, first);
  append_to(text, second);
  append_to(text, third);
  const std::vector<Admitted> got = admitted_from(text);
  ASSERT_EQ(got.size(), 3U);
  const auto same_draw = [](const io::Request& a, const io::Request& b) {
    return a.top_k == b.top_k && a.min_p == b.min_p &&
           a.repetition_penalty == b.repetition_penalty &&
           a.presence_penalty == b.presence_penalty && a.frequency_penalty == b.frequency_penalty &&
           a.logit_bias == b.logit_bias && a.top_logprobs == b.top_logprobs &&
           a.min_tokens == b.min_tokens && a.stop == b.stop;
  };
  const auto same = [&](const Admitted& a, const Admitted& b) {
    return a.request == b.request && a.cached == b.cached && a.asked.line == b.asked.line &&
           a.asked.id == b.asked.id && a.asked.tokens == b.asked.tokens &&
           a.asked.max_tokens == b.asked.max_tokens && a.asked.temperature == b.asked.temperature &&
           a.asked.top_p == b.asked.top_p && a.asked.seed == b.asked.seed &&
           a.asked.own_seed == b.asked.own_seed &&
           a.asked.stop_token_ids == b.asked.stop_token_ids && same_draw(a.asked, b.asked) &&
           a.asked.parts == b.asked.parts && a.asked.part == b.asked.part &&
           a.asked.scored_from == b.asked.scored_from && a.asked.batch == b.asked.batch;
  };
  EXPECT_TRUE(same(got[0], first));
  EXPECT_TRUE(same(got[1], second));
  EXPECT_TRUE(same(got[2], third));
  EXPECT_THROW(admitted_from(text.substr(0, text.size() - 1)), Error);
}

}  // namespace
}  // namespace atl
