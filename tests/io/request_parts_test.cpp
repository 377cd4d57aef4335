// Requests that ask for several results: samples of one prompt, or continuations of it; and what a
// draw can be asked for.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <tuple>

#include "compute/error.hpp"
#include "io/requests.hpp"
#include "tests/io/requests_fixture.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

using RequestParts = RequestLines;

TEST_F(RequestParts, SamplesArePartsWithSeedsOfTheirOwn) {
  limits_.seed = 9;
  const auto requests = read(
      "{\"id\":\"a\",\"tokens\":[1,2],\"n\":3}\n"
      "{\"id\":\"b\",\"tokens\":[1],\"n\":2,\"seed\":18446744073709551615}\n"
      "{\"id\":\"c\",\"tokens\":[],\"n\":2}\n"
      "{\"id\":\"d\",\"tokens\":[1]}\n");
  ASSERT_EQ(requests.size(), 7U);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(requests[i].line, 1);
    EXPECT_EQ(requests[i].id, "a");
    EXPECT_EQ(requests[i].part, static_cast<int>(i));
    EXPECT_EQ(requests[i].parts, 3);
    EXPECT_EQ(requests[i].tokens, (std::vector<std::int32_t>{1, 2}));
    EXPECT_EQ(requests[i].seed, sample_seed(9, "a", i));
  }
  EXPECT_EQ(name_of(requests[2]), "a#2");
  EXPECT_EQ(requests[3].seed, std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(requests[4].seed, 0U);  // the next one, modulo 2^64
  EXPECT_NE(requests[5].error, "");
  EXPECT_EQ(requests[5].parts, 1);
  EXPECT_EQ(requests[6].parts, 1);
  EXPECT_EQ(name_of(requests[6]), "d");
}

TEST_F(RequestParts, SamplesAreOneLineOfResults) {
  const auto requests = read("{\"id\":\"a\",\"tokens\":[1,2],\"n\":2,\"top_logprobs\":1}\n");
  std::vector<std::string> lines;
  for (const Request& request : requests) {
    Result result;
    result.tokens = {7, request.part};
    result.logprobs = {-1, -2};
    result.tops = {{3, -0.5F}, {4, -0.25F}};
    result.finish_reason = "length";
    lines.push_back(result_line(request, result, false));
  }
  const Json joined = Json::parse(joined_line(requests[0].is_continuation(), lines));
  EXPECT_EQ(joined["id"], "a");
  ASSERT_EQ(joined["samples"].size(), 2U);
  EXPECT_EQ(joined["samples"][1]["tokens"], (Json{7, 1}));
  EXPECT_FALSE(joined["samples"][1].contains("id"));
  EXPECT_EQ(joined["samples"][0]["top_logprobs"],
            Json::parse(R"([[{"token":3,"logprob":-0.5}],[{"token":4,"logprob":-0.25}]])"));
  Request failed = requests[1];
  failed.error = "overflowed";
  lines[1] = error_line(failed);
  EXPECT_EQ(error_in(joined_line(requests[0].is_continuation(), lines)), "overflowed");
}

TEST_F(RequestParts, ContinuationsArePartsOfAPromptAndWhatFollows) {
  limits_.scoring = true;
  const auto requests = read(R"({"id":"a","prompt":"Hi","continuations":[" you",[7,8]," all"]})"
                             "\n"
                             R"({"id":"b","tokens":[1],"continuations":["x"]})"
                             "\n");
  ASSERT_EQ(requests.size(), 4U);
  for (const Request& request : requests) ASSERT_EQ(request.error, "");
  EXPECT_EQ(requests[0].tokens, (std::vector<std::int32_t>{'H', 'i', ' ', 'y', 'o', 'u'}));
  EXPECT_EQ(requests[1].tokens, (std::vector<std::int32_t>{'H', 'i', 7, 8}));
  EXPECT_EQ(requests[2].scored_from, 2);
  EXPECT_EQ(requests[3].scored_from, 1);
  EXPECT_EQ(requests[3].tokens, (std::vector<std::int32_t>{1, 'x'}));
  std::vector<std::string> lines;
  for (const Request& request : {requests[0], requests[1], requests[2]}) {
    Result result;
    result.tokens = {1, 2};
    result.logprobs = {-0.5F, -0.25F};
    result.greedy = request.part == 1;
    lines.push_back(result_line(request, result, true));
  }
  EXPECT_EQ(scored_in(lines[0]), (std::vector<float>{-0.5F, -0.25F}));
  const Json joined = Json::parse(joined_line(requests[0].is_continuation(), lines));
  ASSERT_EQ(joined["continuations"].size(), 3U);
  EXPECT_EQ(
      joined["continuations"][1],
      Json::parse(R"({"tokens":[1,2],"logprobs":[-0.5,-0.25],"logprob":-0.75,"greedy":true})"));
  EXPECT_EQ(joined["continuations"][2]["greedy"], false);

  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"Hi","continuations":[]})"), "1 to 65536"));
  EXPECT_TRUE(
      contains(refusal(R"({"id":"a","prompt":"Hi","continuations":["a",""]})"), "is empty"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[1],"continuations":[[256]]})"), "256"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","n":2})"), "not for --mode score"));
  const std::string text =
      R"({"id":"a","tokens":[1],"continuations":["x",")" + std::string(100, 'y') + R"("]})";
  EXPECT_TRUE(contains(refusal(text), "101 tokens, the model has 100 positions"));
  limits_.scoring = false;
  EXPECT_TRUE(
      contains(refusal(R"({"id":"a","prompt":"x","continuations":["y"]})"), "--mode score"));
}

TEST_F(RequestParts, RefusesWhatNoDrawCanDo) {
  const auto line = [](const char* key, const char* value) {
    return fmt::format(R"({{"id":"a","prompt":"x","{}":{}}})", key, value);
  };
  for (const auto& [key, value, message] :
       {std::tuple{"n", "0", "\"n\" is 0"},
        {"n", "1025", "from 1 to 1024"},
        {"top_k", "-2", "\"top_k\" is -2"},
        {"min_p", "1.5", "\"min_p\" is 1.5"},
        {"min_p", "-0.1", "\"min_p\" is -0.1"},
        {"repetition_penalty", "0", "\"repetition_penalty\" is 0"},
        {"presence_penalty", "\"a\"", "must be a number"},
        {"frequency_penalty", "1e9", "\"frequency_penalty\""},
        {"logit_bias", "[1]", "must be an object"},
        {"logit_bias", R"({"a":1})", "the key \"a\""},
        {"logit_bias", R"({"-1":1})", "the key \"-1\""},
        {"logit_bias", R"({"1":1,"01":2})", "a token twice"},
        {"logit_bias", R"({"1":1e31})", "must be from"},
        {"stop", R"([""])", "not empty"},
        {"stop", R"([1])", "must be texts"},
        {"top_logprobs", "21", "from 0 to 20"},
        {"min_tokens", "11", "from 0 to 10"},
        {"messages", "[]", "jobs/chat.py"}}) {
    EXPECT_TRUE(contains(refusal(line(key, value)), message)) << refusal(line(key, value));
  }
  EXPECT_EQ(read(line("top_k", "-1")).at(0).error, "");
  EXPECT_EQ(read(line("stop", "\"x\"")).at(0).stop, std::vector<std::string>{"x"});
  limits_.vocab = 1000;  // no text
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[1],"stop":"x"})"), "needs a tokenizer"));
}

}  // namespace
}  // namespace atl::io
