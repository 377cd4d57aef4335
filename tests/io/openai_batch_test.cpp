// OpenAI's batch lines: what they ask for is what the same request asks for in Atoll's own form,
// and what is not supported is named.
#include "io/openai_batch.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

class OpenAiBatch : public FolderTest {
 protected:
  OpenAiBatch() {
    limits_.vocab = 256;
    limits_.max_positions = 100;
    limits_.default_max_tokens = 10;
  }
  std::vector<Request> read(const std::string& text) const {
    std::ofstream(path("batch.jsonl"), std::ios::binary) << text;
    return read_requests(path("batch.jsonl"), limits_);
  }
  static std::string line(const std::string& id, const Json& body) {
    return Json({{"custom_id", id}, {"method", "POST"}, {"url", "/v1/completions"}, {"body", body}})
               .dump() +
           "\n";
  }
  std::string refusal(const Json& body) const { return read(line("a", body)).at(0).error; }

  RequestLimits limits_;
};

TEST_F(OpenAiBatch, IsReadAsTheSameRequest) {
  const auto batch = read(line("a", {{"model", "m"},
                                     {"prompt", "Hi"},
                                     {"max_tokens", 5},
                                     {"temperature", 0.5},
                                     {"top_p", 0.9},
                                     {"seed", 7},
                                     {"stop", nullptr},
                                     {"n", 1},
                                     {"logprobs", 0},
                                     {"user", "me"}}) +
                          line("b", {{"prompt", {1, 2, 3}}}) + line("c", {{"prompt", {"one"}}}));
  const auto own = read(
      R"({"id": "a", "prompt": "Hi", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 7})");
  ASSERT_EQ(batch.size(), 3U);
  for (const Request& request : batch) EXPECT_EQ(request.error, "");
  EXPECT_EQ(batch[0].id, own[0].id);
  EXPECT_EQ(batch[0].tokens, own[0].tokens);
  EXPECT_EQ(batch[0].max_tokens, own[0].max_tokens);
  EXPECT_EQ(batch[0].temperature, own[0].temperature);
  EXPECT_EQ(batch[0].top_p, own[0].top_p);
  EXPECT_EQ(batch[0].seed, own[0].seed);
  EXPECT_EQ(batch[0].batch->model, "m");
  EXPECT_TRUE(batch[0].batch->logprobs);
  EXPECT_EQ(batch[1].tokens, (std::vector<std::int32_t>{1, 2, 3}));
  EXPECT_EQ(batch[1].temperature, 1);
  EXPECT_FALSE(batch[1].batch->logprobs);
  EXPECT_EQ(batch[2].tokens, (std::vector<std::int32_t>{'o', 'n', 'e'}));
}

TEST_F(OpenAiBatch, NamesWhatIsNotSupported) {
  const std::vector<std::pair<Json, const char*>> cases = {
      {{{"messages", Json::array()}}, "chat template"},
      {{{"prompt", {"a", "b"}}}, "a list of 2"},
      {{{"prompt", "a"}, {"n", 2}}, "\"n\" is 2"},
      {{{"prompt", "a"}, {"stop", "x"}}, "\"stop\" is \"x\""},
      {{{"prompt", "a"}, {"logprobs", 5}}, "\"logprobs\" is 5"},
      {{{"prompt", "a"}, {"echo", true}}, "\"echo\" is true"},
      {{{"prompt", "a"}, {"wings", 2}}, "\"wings\" is not supported"},
      {{{"prompt", "a"}, {"temperature", -1}}, "\"temperature\" is -1"},
      {{{"max_tokens", 3}}, "no \"prompt\""},
  };
  for (const auto& [body, message] : cases) {
    EXPECT_NE(refusal(body).find(message), std::string::npos) << body.dump() << refusal(body);
  }
  const std::string chat =
      R"({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"prompt": "x"}})";
  EXPECT_NE(read(chat).at(0).error.find("/v1/embeddings"), std::string::npos);
  EXPECT_EQ(read(R"({"custom_id": "a", "body": {"prompt": "x"}})").at(0).error, "");
}

TEST_F(OpenAiBatch, EveryLineOfAFileHasOneForm) {
  const auto requests = read(line("a", {{"prompt", "x"}}) + "{\"id\": \"b\", \"prompt\": \"x\"}\n" +
                             "{broken\n" + line("a", {{"prompt", "y"}}));
  ASSERT_EQ(requests.size(), 4U);
  EXPECT_EQ(requests[0].error, "");
  EXPECT_NE(requests[1].error.find("other lines"), std::string::npos) << requests[1].error;
  for (std::size_t i = 1; i < 4; ++i) {
    const std::string text = error_line(requests[i]);
    const Json json = Json::parse(text);
    EXPECT_EQ(json["response"]["status_code"], 400);
    EXPECT_EQ(json["error"]["message"], requests[i].error);
    EXPECT_EQ(error_in(text), requests[i].error);
  }
  EXPECT_EQ(Json::parse(error_line(requests[3]))["custom_id"], "a");
  EXPECT_TRUE(Json::parse(error_line(requests[2]))["custom_id"].is_null());
  const auto own = read("{\"id\": \"b\", \"prompt\": \"x\"}\n" + line("a", {{"prompt", "x"}}));
  EXPECT_NE(own[1].error.find("envelope"), std::string::npos) << own[1].error;
}

TEST_F(OpenAiBatch, ScoringTakesNone) {
  limits_.scoring = true;
  EXPECT_NE(refusal({{"prompt", "x"}}).find("scor"), std::string::npos);
}

TEST_F(OpenAiBatch, WritesResponses) {
  Request request = read(line("a\"b", {{"model", "m"}, {"prompt", "Hi"}, {"logprobs", 0}})).at(0);
  ASSERT_EQ(request.error, "");
  Result result;
  result.prompt_tokens = 2;
  result.tokens = {0xc3, 0xa9, 'x'};
  result.token_texts = {"\xef\xbf\xbd", "\xef\xbf\xbd", "x"};
  result.text = "\xc3\xa9x\",\"error\":{\"code\":";
  result.logprobs = {-0.1F, -0.25F, -3};
  result.finish_reason = "length";
  const std::string text = result_line(request, result, /*scoring=*/false);
  EXPECT_EQ(error_in(text), std::nullopt);
  const Json json = Json::parse(text);
  EXPECT_EQ(json["custom_id"], "a\"b");
  EXPECT_TRUE(json["error"].is_null());
  EXPECT_EQ(json["response"]["status_code"], 200);
  const Json& body = json["response"]["body"];
  EXPECT_EQ(body["model"], "m");
  EXPECT_EQ(body["usage"],
            (Json{{"prompt_tokens", 2}, {"completion_tokens", 3}, {"total_tokens", 5}}));
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], *result.text);
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(choice["logprobs"]["text_offset"], (Json{0, 1, 2}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"][0].get<float>(), -0.1F);
}

}  // namespace
}  // namespace atl::io
