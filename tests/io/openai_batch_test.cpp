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

TEST_F(OpenAiBatch, BrokenLinesAreNamedWhereThatCanBeRead) {
  const std::string good = line("a", {{"prompt", "x"}});
  const std::string broken = R"({"custom_id": "b", "body": {"id": "c", "prompt": )"
                             "\n";
  for (const std::string& text : {good + broken, broken + good}) {
    const auto requests = read(text);
    ASSERT_EQ(requests.size(), 2U);
    const Request& named = requests[text == good + broken ? 1 : 0];
    EXPECT_NE(named.error.find("not valid JSON"), std::string::npos);
    EXPECT_EQ(Json::parse(batch_error_line(named))["custom_id"], "b");
  }
  const auto own = read(good + "{\"id\": \"d\", \"prompt\": \"x\"}\n");
  EXPECT_EQ(Json::parse(batch_error_line(own.at(1)))["custom_id"], "d");
}

TEST_F(OpenAiBatch, ErrorsOfIdsNameTheirKey) {
  const auto requests =
      read(line("a", {{"prompt", "x"}}) + line("a", {{"prompt", "y"}}) +
           line("", {{"prompt", "x"}}) + "{\"custom_id\": 26, \"body\": {\"prompt\": \"x\"}}\n");
  ASSERT_EQ(requests.size(), 4U);
  EXPECT_EQ(requests[0].error, "");
  for (const std::size_t i : {1, 2, 3}) {
    EXPECT_TRUE(requests[i].error.starts_with("\"custom_id\" ")) << requests[i].error;
  }
}

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
      {{{"prompt", {"a", ""}}}, "a prompt is empty"},
      {{{"prompt", {"a", {1, 256}}}}, "\"prompt\" is 256"},
      {{{"prompt", {1, 256}}}, "\"prompt\" is 256"},
      {{{"prompt", {"a", std::string(95, 'b')}}}, "lower max_tokens"},
      {{{"prompt", std::string(95, 'b')}, {"max_completion_tokens", 6}},
       "lower max_completion_tokens"},
      {{{"prompt", "a"}, {"max_completion_tokens", -1}}, "\"max_completion_tokens\" is -1"},
      {{{"prompt", std::vector<std::string>(100, "a")}, {"n", 1000}},
       "100 prompts with 1000 samples"},
      {{{"prompt", "a"}, {"n", 0}}, "\"n\" is 0"},
      {{{"prompt", "a"}, {"n", 2}, {"best_of", 3}}, "\"best_of\" is 3"},
      {{{"prompt", "a"}, {"stop", 5}}, "\"stop\" has 5"},
      {{{"prompt", "a"}, {"logprobs", 21}}, "\"logprobs\" is 21"},
      {{{"prompt", "a"}, {"logprobs", true}}, "\"logprobs\" is true"},
      {{{"prompt", "a"}, {"top_logprobs", 2}}, "for chats"},
      {{{"prompt", "a"}, {"logit_bias", {{"256", 1}}}}, "the key \"256\""},
      {{{"prompt", "a"}, {"max_tokens", 1}, {"max_completion_tokens", 2}}, "differ"},
      {{{"prompt", "a"}, {"stream", true}}, "\"stream\" is true"},
      {{{"prompt", "a"}, {"continuations", {"b"}}}, "\"continuations\" is not supported"},
      {{{"messages", Json::array()}, {"render_error", "no user"}}, "no user"},
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
  result.token_bytes = {"\xc3", "\xa9", "x"};
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
  EXPECT_EQ(choice["logprobs"]["tokens"][0], "\xef\xbf\xbd");
  EXPECT_TRUE(choice["logprobs"]["top_logprobs"].is_null());
}

TEST_F(OpenAiBatch, AsksForWhatItsNamesSay) {
  const Request request = read(line("a", {{"prompt", "Hi"},
                                          {"n", 3},
                                          {"best_of", 3},
                                          {"seed", 5},
                                          {"max_completion_tokens", 4},
                                          {"stop", {"x", "yz"}},
                                          {"logprobs", 2},
                                          {"top_k", -1},
                                          {"min_p", 0.1},
                                          {"presence_penalty", 0.5},
                                          {"frequency_penalty", -0.5},
                                          {"repetition_penalty", 1.5},
                                          {"logit_bias", {{"7", -100}, {"3", 1.5}}},
                                          {"min_tokens", 2},
                                          {"stream", false},
                                          {"metadata", {{"a", "b"}}}}))
                              .at(2);
  ASSERT_EQ(request.error, "");
  EXPECT_EQ(request.parts, 3);
  EXPECT_EQ(request.part, 2);
  EXPECT_EQ(request.seed, 7U);
  EXPECT_EQ(request.max_tokens, 4);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"x", "yz"}));
  EXPECT_EQ(request.top_logprobs, 2);
  EXPECT_EQ(request.top_k, 0);
  EXPECT_EQ(request.min_p, 0.1);
  EXPECT_EQ(request.presence_penalty, 0.5);
  EXPECT_EQ(request.frequency_penalty, -0.5);
  EXPECT_EQ(request.repetition_penalty, 1.5);
  EXPECT_EQ(request.logit_bias,
            (std::vector<std::pair<std::int32_t, float>>{{3, 1.5F}, {7, -100.0F}}));
  EXPECT_EQ(request.min_tokens, 2);
}

/// A chat whose messages jobs/chat.py has rendered: a prompt under the url of chats.
TEST_F(OpenAiBatch, ChatsAreRenderedPromptsWithResponsesOfTheirOwn) {
  const auto chat = [](Json body) {
    return Json({{"custom_id", "c"}, {"url", "/v1/chat/completions"}, {"body", body}}).dump() +
           "\n";
  };
  const Json body = {{"model", "m"},
                     {"prompt", "<u>Hi"},
                     {"add_special_tokens", false},
                     {"logprobs", true},
                     {"top_logprobs", 1},
                     {"n", 2},
                     {"response_format", {{"type", "text"}}}};
  const auto requests = read(chat(body));
  ASSERT_EQ(requests.size(), 2U);
  ASSERT_EQ(requests[0].error, "");
  EXPECT_TRUE(requests[0].batch->chat);
  std::vector<std::string> lines;
  for (const Request& request : requests) {
    Result result;
    result.prompt_tokens = 5;
    result.tokens = {'o', 0xc3};
    result.token_bytes = {"o", "\xc3", "o", "k"};
    result.logprobs = {-0.5F, -2.0F};
    result.tops = {{'o', -0.5F}, {'k', -1.0F}};
    result.text = "o\xef\xbf\xbd";
    result.finish_reason = request.part == 0 ? "stop" : "length";
    lines.push_back(result_line(request, result, /*scoring=*/false));
  }
  const Json joined = Json::parse(joined_line(requests[0].is_continuation(), lines));
  const Json& response = joined["response"]["body"];
  EXPECT_EQ(joined["custom_id"], "c");
  EXPECT_EQ(response["object"], "chat.completion");
  ASSERT_EQ(response["choices"].size(), 2U);
  EXPECT_EQ(response["choices"][1]["index"], 1);
  EXPECT_EQ(response["choices"][1]["finish_reason"], "length");
  EXPECT_EQ(response["choices"][0]["message"]["role"], "assistant");
  EXPECT_EQ(response["choices"][0]["message"]["content"], "o\xef\xbf\xbd");
  const Json& second = response["choices"][0]["logprobs"]["content"][1];
  EXPECT_EQ(second["bytes"], (Json{0xc3}));
  EXPECT_EQ(second["top_logprobs"][0]["token"], "k");
  EXPECT_EQ(response["usage"],
            (Json{{"prompt_tokens", 5}, {"completion_tokens", 4}, {"total_tokens", 9}}));

  for (const auto& [key, value, message] : {std::tuple{"logprobs", Json(2), "true or false"},
                                            {"echo", Json(true), "for completions"},
                                            {"tools", Json::array({1}), "\"tools\" is [1]"}}) {
    Json bad = body;
    bad[key] = value;
    EXPECT_NE(read(chat(bad)).at(0).error.find(message), std::string::npos) << message;
  }
}

TEST_F(OpenAiBatch, MostProbableTokensStandBesideTheChosen) {
  const Request request = read(line("a", {{"prompt", "Hi"}, {"logprobs", 2}})).at(0);
  Result result;
  result.tokens = {5, 6};
  result.logprobs = {-3, -1};
  result.tops = {{1, -0.5F}, {2, -0.75F}, {6, -1}, {3, -2}};
  result.token_bytes = {"five", "six", "one", "two", "six", "six"};  // two tokens with one text
  result.text = "fivesix";
  const Json json = Json::parse(result_line(request, result, false));
  const Json& tops = json["response"]["body"]["choices"][0]["logprobs"]["top_logprobs"];
  EXPECT_EQ(tops, (Json{{{"one", -0.5}, {"two", -0.75}, {"five", -3}}, {{"six", -1}}}));
}

TEST_F(OpenAiBatch, EchoPutsThePromptBeforeEachChoice) {
  const auto requests = read(line("a", {{"prompt", "Hi"}, {"echo", true}}) +
                             line("b", {{"prompt", {72, 105}}, {"echo", true}}));
  for (const Request& request : requests) {
    ASSERT_EQ(request.error, "");
    Result result;
    result.text = " there";
    const Json json = Json::parse(result_line(request, result, false));
    EXPECT_EQ(json["response"]["body"]["choices"][0]["text"], "Hi there");
  }
}

/// The prompt's tokens come first: of the first one nothing is known.
TEST_F(OpenAiBatch, EchoWithLogprobsHasThoseOfThePrompt) {
  const Request request =
      read(line("a", {{"prompt", "Hi"}, {"echo", true}, {"logprobs", 1}, {"max_tokens", 0}})).at(0);
  ASSERT_EQ(request.error, "");
  EXPECT_EQ(request.max_tokens, 0);
  EXPECT_TRUE(request.scores_prompt());
  Result result;
  result.prompt_tokens = 2;
  result.prompt = {'H', 'i'};
  result.prompt_logprobs = {-2};
  result.prompt_tops = {{'o', -0.5F}};
  result.prompt_bytes = {"H", "i", "o"};
  result.text = "";
  result.finish_reason = "length";
  const Json body = Json::parse(result_line(request, result, false))["response"]["body"];
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], "Hi");
  EXPECT_EQ(choice["token_ids"], Json::array());
  EXPECT_EQ(choice["logprobs"], (Json{{"tokens", {"H", "i"}},
                                      {"token_logprobs", {nullptr, -2}},
                                      {"top_logprobs", {nullptr, {{"o", -0.5}, {"i", -2}}}},
                                      {"text_offset", {0, 1}}}));
  result.tokens = {'!'};
  result.logprobs = {-1};
  result.tops = {{'!', -1}};
  result.token_bytes = {"!", "!"};
  const Json longer = Json::parse(result_line(request, result, false))["response"]["body"];
  const Json& all = longer["choices"][0]["logprobs"];
  EXPECT_EQ(all["tokens"], (Json{"H", "i", "!"}));
  EXPECT_EQ(all["token_logprobs"], (Json{nullptr, -2, -1}));
  EXPECT_EQ(all["text_offset"], (Json{0, 1, 2}));
}

TEST_F(OpenAiBatch, SeveralPromptsOfALineAreItsParts) {
  const auto requests = read(line("a", {{"prompt", {"Hi", {72, 111}, "x"}},
                                        {"n", 2},
                                        {"seed", 5},
                                        {"echo", true},
                                        {"max_tokens", 3}}) +
                             line("b", {{"prompt", {"Hi"}}}));
  ASSERT_EQ(requests.size(), 7U);
  std::vector<std::string> lines;
  const std::vector<std::string> texts = {"Hi", "Hi", "Ho", "Ho", "x", "x"};
  for (std::size_t i = 0; i < 6; ++i) {
    const Request& request = requests[i];
    ASSERT_EQ(request.error, "");
    EXPECT_EQ(request.parts, 6);
    EXPECT_EQ(request.part, static_cast<int>(i));
    EXPECT_EQ(request.seed, 5 + i);
    EXPECT_EQ(std::string(request.tokens.begin(), request.tokens.end()), texts[i]);
    Result result;
    result.prompt_tokens = std::ssize(request.tokens);
    result.tokens = {1, 2, 3};
    result.text = "!";
    result.finish_reason = "length";
    lines.push_back(result_line(request, result, false));
  }
  EXPECT_EQ(requests[6].parts, 1);
  const Json body = Json::parse(joined_line(false, lines))["response"]["body"];
  ASSERT_EQ(body["choices"].size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["text"], texts[i] + "!");
  }
  EXPECT_EQ(body["usage"],
            (Json{{"prompt_tokens", 5}, {"completion_tokens", 18}, {"total_tokens", 23}}));
}

/// One version's name stands once, several stand in the order of the choices.
TEST_F(OpenAiBatch, TheWeightsOfALineCanBeRead) {
  const auto requests = read(line("a", {{"prompt", "Hi"}, {"n", 2}}));
  std::vector<std::string> lines;
  for (const Request& request : requests) {
    Result result;
    result.text = ",\"weights\":\"";
    lines.push_back(with_weights(result_line(request, result, false), "v1"));
  }
  EXPECT_EQ(Json::parse(joined_line(false, lines))["weights"], "v1");
  lines[1].replace(lines[1].rfind("v1"), 2, "v1,v2");
  EXPECT_EQ(Json::parse(joined_line(false, lines))["weights"], (Json{"v1", "v1,v2"}));
  const Json own = Json::parse(
      joined_line(false, std::vector<std::string>{R"({"id":"a","tokens":[],"weights":"v1"})",
                                                  R"({"id":"a","tokens":[],"weights":"v1"})"}));
  EXPECT_EQ(own["weights"], "v1");
  EXPECT_FALSE(own["samples"][0].contains("weights"));
}

TEST_F(OpenAiBatch, TheFormatMayBeSaid) {
  limits_.format = LineFormat::openai;
  EXPECT_NE(read("{\"id\": \"b\", \"prompt\": \"x\"}\n").at(0).error.find("OpenAI's batch format"),
            std::string::npos);
  EXPECT_EQ(read(line("a", {{"prompt", "x"}})).at(0).error, "");
  limits_.format = LineFormat::atoll;
  EXPECT_NE(read(line("a", {{"prompt", "x"}})).at(0).error.find("envelope"), std::string::npos);
}

}  // namespace
}  // namespace atl::io
