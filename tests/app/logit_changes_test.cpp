// What penalties, biases and bans make of logits, as a request grows.

#include "app/run/logit_changes.hpp"

#include <gtest/gtest.h>

#include <map>

namespace atl {
namespace {

std::map<std::int32_t, LogitChange> by_token(const LogitChanges& changes) {
  std::map<std::int32_t, LogitChange> all;
  for (const LogitChange& change : changes.all()) {
    EXPECT_TRUE(all.emplace(change.token, change).second) << "token " << change.token << " twice";
  }
  return all;
}

TEST(LogitChanges, AUsualRequestHasNone) {
  LogitChanges changes;
  const std::vector<std::int32_t> prompt = {1, 2};
  const std::vector<std::int32_t> stops = {9};
  changes.begin({}, prompt, stops);
  changes.add(7);
  EXPECT_TRUE(changes.all().empty());
}

TEST(LogitChanges, PenaltiesCountTheOutputAndRepetitionThePromptToo) {
  io::Request asked;
  asked.repetition_penalty = 1.2;
  const std::vector<std::int32_t> prompt = {1, 2, 1};
  LogitChanges changes;
  changes.begin(asked, prompt, {});
  for (const std::int32_t token : {2, 7, 7}) changes.add(token);
  auto all = by_token(changes);
  ASSERT_EQ(all.size(), 3U);
  EXPECT_EQ(all[1].generated, 0);
  EXPECT_EQ(all[2].generated, 1);
  EXPECT_EQ(all[7].generated, 2);
  for (const auto& [token, change] : all) EXPECT_TRUE(change.repeated) << token;

  asked.repetition_penalty = 1;
  asked.presence_penalty = 0.5;
  changes.begin(asked, prompt, {});  // what it was before is gone
  changes.add(2);
  all = by_token(changes);
  ASSERT_EQ(all.size(), 1U);
  EXPECT_EQ(all[2].generated, 1);
}

TEST(LogitChanges, BiasesStayAndBansEnd) {
  io::Request asked;
  asked.logit_bias = {{3, -2.5F}, {9, 1.0F}};
  asked.stop_token_ids = {9};
  asked.min_tokens = 2;
  const std::vector<std::int32_t> stops = {4};
  LogitChanges changes;
  changes.begin(asked, {}, stops);
  const auto banned = [&] {
    std::vector<std::int32_t> tokens;
    for (const auto& [token, change] : by_token(changes)) {
      if (change.banned) tokens.push_back(token);
    }
    return tokens;
  };
  EXPECT_EQ(banned(), (std::vector<std::int32_t>{4, 9}));
  changes.add(5);
  EXPECT_EQ(banned(), (std::vector<std::int32_t>{4, 9}));
  changes.add(5);
  EXPECT_TRUE(banned().empty());
  EXPECT_EQ(by_token(changes)[3].bias, -2.5F);
  EXPECT_EQ(by_token(changes)[9].bias, 1.0F);
}

}  // namespace
}  // namespace atl
