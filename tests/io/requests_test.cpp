#include "io/requests.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "compute/error.hpp"
#include "io/model_text.hpp"
#include "io/tokenizer/import.hpp"
#include "tests/io/requests_fixture.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

using Requests = RequestLines;

TEST_F(Requests, ReadsAllKeys) {
  const auto requests = read(
      "\xef\xbb\xbf{\"id\": \"a\", \"prompt\": \"H\\u00e9\"}\r\n"
      "\n   \t\r\n"
      R"({"id":"b","tokens":[0,255,7],"max_tokens":5,"temperature":0.5,"top_p":0.25,)"
      R"("seed":18446744073709551615,"stop_token_ids":[10,0]})");
  ASSERT_EQ(requests.size(), 2U);
  EXPECT_EQ(requests[0].error, "");
  EXPECT_EQ(requests[0].id, "a");
  EXPECT_EQ(requests[0].line, 1);
  EXPECT_EQ(requests[0].tokens, (std::vector<std::int32_t>{'H', 0xc3, 0xa9}));
  EXPECT_FALSE(requests[0].max_tokens.has_value());
  EXPECT_EQ(requests[0].temperature, 0.0);
  EXPECT_EQ(requests[0].top_p, 1.0);
  EXPECT_EQ(requests[1].error, "");
  EXPECT_EQ(requests[1].line, 4);
  EXPECT_EQ(requests[1].tokens, (std::vector<std::int32_t>{0, 255, 7}));
  EXPECT_EQ(requests[1].max_tokens, 5);
  EXPECT_EQ(requests[1].temperature, 0.5);
  EXPECT_EQ(requests[1].top_p, 0.25);
  EXPECT_EQ(requests[1].seed, std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(requests[1].stop_token_ids, (std::vector<std::int32_t>{10, 0}));
}

TEST_F(Requests, RefusesLinesWithTheirReason) {
  EXPECT_TRUE(contains(refusal("{"), "not valid JSON"));
  EXPECT_TRUE(contains(refusal("{\"id\":\"\xff\",\"prompt\":\"x\"}"), "not valid JSON"));
  EXPECT_TRUE(contains(refusal(std::string("{\"id\":\"a\0\"}", 11)), "not valid JSON"));
  EXPECT_TRUE(contains(refusal("[1]"), "instead of a JSON object"));
  EXPECT_TRUE(contains(refusal(std::string(200000, '[')), "nested more than 64 deep"));
  EXPECT_TRUE(contains(refusal(R"({"prompt":"x"})"), "no \"id\""));
  EXPECT_TRUE(contains(refusal(R"({"id":7,"prompt":"x"})"), "\"id\" is 7"));
  EXPECT_TRUE(contains(refusal(R"({"id":"","prompt":"x"})"), "non-empty"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a"})"), "neither"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","tokens":[1]})"), "both"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":7})"), "must be a string"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":null})"), "neither"));
  EXPECT_TRUE(contains(refusal(R"({"id":null,"prompt":"x"})"), "no \"id\""));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":""})"), "empty"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[]})"), "empty"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":"x"})"), "list of token ids"));
  EXPECT_TRUE(
      contains(refusal(R"({"id":"a","tokens":[256]})"), "256, must be an integer from 0 to"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[-1]})"), "-1"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[1.5]})"), "1.5"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[18446744073709551615]})"), "integer"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","tokens":[1e99]})"), "integer"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","temperature":-0.1})"), "temperature"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","temperature":"hot"})"), "temperature"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","temperature":1e999})"),
                       "the number '1e999' is too large"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","temperature":NaN})"),
                       "not valid JSON at byte 38"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","top_p":0})"), "top_p"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","top_p":1.01})"), "top_p"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","seed":-1})"), "seed"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","seed":0.5})"), "seed"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","max_tokens":0})"), "max_tokens"));
  EXPECT_TRUE(
      contains(refusal(R"({"id":"a","prompt":"x","max_tokens":2147483648})"), "max_tokens"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","stop_token_ids":[256]})"), "stop_token"));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x","m":2})"), "unknown key \"m\""));
}

TEST_F(Requests, NullIsNotGiven) {
  const auto requests = read(
      R"({"id":"a","prompt":"x","tokens":null,"max_tokens":null,"temperature":null,"top_p":null,)"
      R"("seed":null,"stop_token_ids":null,"stop":null})"
      "\n"
      R"({"id":"a2","prompt":"x"})");
  ASSERT_EQ(requests.size(), 2U);
  EXPECT_EQ(requests[0].error, "");
  EXPECT_EQ(requests[0].tokens, requests[1].tokens);
  EXPECT_FALSE(requests[0].max_tokens.has_value());
  EXPECT_EQ(requests[0].temperature, 0.0);
  EXPECT_EQ(requests[0].top_p, 1.0);
  EXPECT_FALSE(requests[0].own_seed);
  EXPECT_TRUE(requests[0].stop_token_ids.empty());
}

TEST_F(Requests, TakesWholeNumbersHoweverTheyAreWritten) {
  const Request r = read(R"({"id":"a","tokens":[7.0,1e2,-0.0,-0],"max_tokens":0.5e1,)"
                         R"("seed":9007199254740991.0,"stop_token_ids":[255.0]})")
                        .at(0);
  EXPECT_EQ(r.error, "");
  EXPECT_EQ(r.tokens, (std::vector<std::int32_t>{7, 100, 0, 0}));
  EXPECT_EQ(r.max_tokens, 5);
  EXPECT_EQ(r.seed, 9007199254740991U);
  EXPECT_EQ(r.stop_token_ids, (std::vector<std::int32_t>{255}));
  for (const char* bad : {"6.5", "9007199254740992.0", "18446744073709551616", "1e300", "-1",
                          "-1.0", "true", "\"6\"", "[6]"}) {
    const std::string seed = fmt::format(R"({{"id":"a","prompt":"x","seed":{}}})", bad);
    EXPECT_TRUE(contains(refusal(seed), "\"seed\" is ")) << bad;
    const std::string token = fmt::format(R"({{"id":"a","tokens":[{}]}})", bad);
    EXPECT_TRUE(contains(refusal(token), "\"tokens\" is ")) << bad;
    const std::string most = fmt::format(R"({{"id":"a","prompt":"x","max_tokens":{}}})", bad);
    EXPECT_TRUE(contains(refusal(most), "\"max_tokens\" is ")) << bad;
  }
}

TEST_F(Requests, GivesEachRequestWithoutASeedOneOfItsOwn) {
  limits_.seed = 5;
  const auto requests = read(
      "\n{\"id\":\"a\",\"prompt\":\"x\"}\n{\"id\":\"b\",\"prompt\":\"x\"}\n"
      "{\"id\":\"c\",\"prompt\":\"x\",\"seed\":0}\n");
  ASSERT_EQ(requests.size(), 3U);
  EXPECT_EQ(requests[0].seed, sample_seed(5, "a"));
  EXPECT_EQ(requests[1].seed, sample_seed(5, "b"));
  EXPECT_FALSE(requests[1].own_seed);
  EXPECT_EQ(requests[2].seed, 0U);
  EXPECT_TRUE(requests[2].own_seed);
}

TEST(SampleSeed, IsTheHashOfSeedSampleAndId) {
  // As `printf '0 0 a' | xxhsum -H3` has them: results depend on these numbers for good.
  EXPECT_EQ(sample_seed(0, "a"), 0xac14f4ded227d2b8U);
  EXPECT_EQ(sample_seed(18446744073709551615U, "request 7", 3), 0x0d6fa4c7ab021289U);
  std::set<std::uint64_t> seeds;
  for (const std::uint64_t seed : {0, 1, 10}) {
    for (const std::uint64_t sample : {0, 1, 10}) {
      for (const char* id : {"", "0", "1", "10", "0 1"})
        seeds.insert(sample_seed(seed, id, sample));
    }
  }
  EXPECT_EQ(seeds.size(), 45U);
}

TEST_F(Requests, BrokenLinesKeepTheirIdsAndTakeNone) {
  for (const char* line :
       {R"({"id":"a","prompt":"cut)", R"({"id":"a","prompt":"x","temperature":1e999})",
        R"({"temperature":-1e999, "id" : "a"})", R"({"x":{"id":"b"},"y":["id"],"id":"a",})",
        R"({"x":"id","id":"\u0061", NaN})", R"({"\"id\":\"b\"":1,"id":"a")"}) {
    const auto requests = read(std::string(line) + "\n{\"id\":\"a\",\"prompt\":\"x\"}");
    ASSERT_EQ(requests.size(), 2U);
    EXPECT_EQ(requests[0].id, "a") << line;
    EXPECT_NE(requests[0].error, "");
    EXPECT_EQ(requests[1].error, "");
  }
  for (const char* line : {R"({"id":7,)", R"({"id":"cut)", R"([{"id":"a"}])",
                           R"({"id":{"id":"b"},)", R"({"id" "a",)", "", "{"}) {
    EXPECT_EQ(read(std::string(line) + "\n{\"id\":\"z\",\"prompt\":\"x\"}").at(0).id,
              *line == '\0' ? "z" : "")
        << line;
  }
}

TEST_F(Requests, KnowsFilesOfAnotherForm) {
  const auto utf16 = [](const std::string& text, bool big) {
    std::string wide;
    for (const char c : text) wide += big ? std::string{'\0', c} : std::string{c, '\0'};
    return wide;
  };
  const std::string line = "{\"id\":\"a\",\"prompt\":\"x\"}\n";
  const std::pair<std::string, std::string> files[] = {
      {"\xff\xfe" + utf16(line, false), "UTF-16LE text"},
      {"\xfe\xff" + utf16(line, true), "UTF-16BE text"},
      {utf16(line, false), "UTF-16LE text"},
      {utf16(line, true), "UTF-16BE text"},
      {utf16("\r\n" + line, false), "UTF-16LE text"},
      {std::string("\xff\xfe\0\0{\0\0\0", 8), "UTF-32LE text"},
      {std::string("\0\0\0{\0\0\0}", 8), "UTF-32BE text"},
      {"\x1f\x8b\x08", "gzip"},
      {"\x28\xb5\x2f\xfd", "zstd"},
      {std::string("\xfd\x37zXZ\0", 6), "xz"},
      {"BZh91AY", "bzip2"},
      {"PK\x03\x04", "ZIP"},
      {"\x89HDF\r\n\x1a\n", "--input"},
  };
  for (const auto& [text, word] : files) {
    const auto requests = read(text + line + line);
    ASSERT_EQ(requests.size(), 1U) << word;
    EXPECT_EQ(requests[0].line, 1);
    EXPECT_TRUE(contains(requests[0].error, word)) << requests[0].error;
  }
}

TEST_F(Requests, AdvisesWhereTheFirstLineIsNone) {
  EXPECT_TRUE(contains(refusal("[]"), "looks like one JSON array"));
  EXPECT_TRUE(contains(read("\n [\n{\"id\":\"a\"},\n]").at(0).error, "one JSON array"));
  EXPECT_TRUE(contains(read("{\n\"id\":\"a\"\n}").at(0).error, "spread over lines"));
  EXPECT_TRUE(contains(read("{ \"id\": \"a\",\n\"prompt\": \"x\" }").at(0).error, "over lines"));
  EXPECT_TRUE(contains(refusal("id,prompt"), "table or plain text"));
  EXPECT_TRUE(contains(refusal("{'id': 'a'}"), "json.dumps"));
  EXPECT_TRUE(contains(refusal(R"({"id":7})"), "write \"7\""));
  EXPECT_TRUE(contains(refusal(R"({"id":"a","body":{"prompt":"x"}})"), "envelope"));
  for (const char* line : {R"({"id":"a","prompt":"cut)", R"({"id":"a","prompt":"x"},)"}) {
    EXPECT_FALSE(contains(refusal(line), "write")) << refusal(line);
  }
  const std::string good = "{\"id\":\"a\",\"prompt\":\"x\"}\n";
  EXPECT_FALSE(contains(read(good + "[\n").at(1).error, "array"));
}

TEST_F(Requests, ServesNothingOfAFileThatIsOneValue) {
  const std::string a = R"({"id":"a","prompt":"x"})";
  const std::string b = R"({"id":"b","prompt":"x"})";
  const std::string c = R"({"id":"c","prompt":"x"})";
  const std::pair<std::string, std::string> files[] = {
      {"[\n" + a + ",\n" + b + "\n]\n", "one JSON array"},
      {"[\n" + a + "\n]", "one JSON array"},
      {"[\n" + a + ",\n" + b, "one JSON array"},
      {"[" + a + ",\n" + b + "\n,\n" + c + "\n]", "one JSON array"},
      {"{\"requests\" : [\n" + a + ",\n" + b + "\n]}\n", "jq -c '.requests[]'"},
      {"{\n\"to do\":\n[\n" + a + "\n]\n}\n", "jq -c '.[]'"},
      {"{\"id\":\"z\",\n\"prompt\":\"x\"\n}\n" + a, "spread over lines"},
      {a + ",\n" + b + "\n", "commas between"},
      {a + "\n," + b + "\n, " + c + "\n", "commas between"},
  };
  for (const auto& [text, word] : files) {
    const auto requests = read(text);
    EXPECT_TRUE(contains(requests.at(0).error, word)) << text << requests[0].error;
    for (const Request& request : requests) EXPECT_NE(request.error, "") << text;
  }
  for (const std::string broken :
       {"[", "{", "]", "}", R"({"id":"z",)", R"({"id":"z","tokens":[1,2)",
        R"({"id":"z","prompt":")", R"({"id":"z","prompt":"\"[)", R"({"id":"z","prompt":"[{"},)"}) {
    for (const std::string& text :
         {broken + "\n" + a + "\n" + b + "\n" + c, a + "\n" + broken + "\n" + b + "\n" + c,
          a + "\n" + b + "\n" + c + "\n" + broken}) {
      const auto requests = read(text);
      const auto served = std::count_if(requests.begin(), requests.end(),
                                        [](const Request& r) { return r.error.empty(); });
      EXPECT_EQ(served, 3) << text;
    }
  }
}

TEST_F(Requests, SaysWhyALineIsNotJson) {
  const std::string a = R"({"id":"a","prompt":"}{\"}{"})";
  EXPECT_TRUE(contains(refusal(a + a), "several objects"));
  EXPECT_TRUE(contains(refusal(a + " \t" + a), "several objects"));
  EXPECT_TRUE(contains(refusal(a + "\r" + a + "\r"), "carriage return"));
  EXPECT_FALSE(contains(refusal(a + "x"), "several objects"));
  EXPECT_EQ(read(a + "\r").at(0).error, "");
  EXPECT_EQ(read("{\r\"id\":\"a\",\r\"prompt\":\"x\"\r}\n").at(0).error, "");
  EXPECT_TRUE(contains(refusal("{\"id\":\"\xe9\",\"prompt\":\"x\"}"), "not UTF-8 (byte 0xe9)"));
  std::string many;
  while (many.size() < (3U << 20)) many += a + "\r";
  EXPECT_TRUE(contains(refusal(many), "carriage return"));
  EXPECT_TRUE(contains(refusal(R"({"requests":[{"prompt":"x"}]})"), "jq -c '.[\"requests\"][]'"));
}

TEST_F(Requests, LimitsLengths) {
  const auto line = [](int prompt, int max_tokens) {
    return Json{{"id", "a"}, {"prompt", std::string(prompt, 'x')}, {"max_tokens", max_tokens}}
        .dump();
  };
  EXPECT_EQ(read(line(60, 40)).at(0).error, "");
  EXPECT_TRUE(
      contains(refusal(line(60, 41)), "60 tokens and 41 to be generated exceed the model's 100"));
  EXPECT_TRUE(contains(refusal(line(101, 1)), "has 101 tokens, the model has 100 positions"));
  EXPECT_TRUE(contains(refusal(line(60, 2147483647)), "2147483647"));
  const std::string no_max = Json{{"id", "a"}, {"prompt", std::string(91, 'x')}}.dump();
  EXPECT_TRUE(contains(refusal(no_max), "91 tokens and 10"));
  limits_.scoring = true;
  EXPECT_EQ(read(line(100, 41)).at(0).error, "");
  EXPECT_TRUE(contains(refusal(line(101, 1)), "has 101 tokens"));
}

TEST_F(Requests, TextNeedsAByteVocabulary) {
  limits_.vocab = 1000;
  EXPECT_TRUE(contains(refusal(R"({"id":"a","prompt":"x"})"), "give \"tokens\""));
  EXPECT_EQ(read(R"({"id":"a","tokens":[999]})").at(0).error, "");
}

TEST_F(Requests, RefusesRepeatedIds) {
  const auto requests = read(
      "{\"id\":\"a\",\"prompt\":\"\"}\n{\"id\":\"b\",\"prompt\":\"x\"}\n"
      "{\"id\":\"a\",\"prompt\":\"y\"}\n");
  ASSERT_EQ(requests.size(), 3U);
  EXPECT_TRUE(contains(requests[0].error, "empty"));
  EXPECT_EQ(requests[1].error, "");
  EXPECT_TRUE(contains(requests[2].error, "line 1"));
}

TEST_F(Requests, SkipsEnormousLines) {
  const auto requests = read("{\"id\":\"a\",\"prompt\":\"" + std::string(5 << 20, 'x') + "\"}\n" +
                             std::string(5 << 20, ' ') + "\n{\"id\":\"b\",\"prompt\":\"x\"}");
  ASSERT_EQ(requests.size(), 3U);
  EXPECT_TRUE(contains(requests[0].error, "the line has 5242902 bytes"));
  EXPECT_TRUE(contains(requests[1].error, "the line has 5242880 bytes"));
  EXPECT_EQ(requests[2].error, "");
  EXPECT_EQ(requests[2].line, 3);
}

TEST_F(Requests, RefusesFilesWithoutRequests) {
  EXPECT_THROW(read(""), Error);
  EXPECT_THROW(read("\n \r\n"), Error);
  EXPECT_THROW(read_requests((folder_ / "none").string(), limits_), Error);
  EXPECT_THROW(read_requests(folder_.string(), limits_), Error);
}

TEST_F(Requests, WritesResults) {
  Request request;
  request.id = "a\"\xc3\xa9";
  Result result;
  result.tokens = {72, 105, 0xff};
  result.logprobs = {-0.1F, -1e-7F, -3.0F};
  result.finish_reason = "stop";
  result.text = ModelText(256).decode(result.tokens, {});
  const std::string line = result_line(request, result, false);
  EXPECT_EQ(line, R"({"id":"a\")"
                  "\xc3\xa9"
                  R"(","tokens":[72,105,255],"text":"Hi)"
                  "\xef\xbf\xbd"
                  R"(","logprobs":[-0.1,-1e-07,-3],"finish_reason":"stop"})");
  EXPECT_EQ(Json::parse(line)["logprobs"][0].get<float>(), -0.1F);
  EXPECT_EQ(with_weights(line, "w"), line.substr(0, line.size() - 1) + R"(,"weights":"w"})");
  result.text.reset();
  EXPECT_TRUE(Json::parse(result_line(request, result, false))["text"].is_null());
  EXPECT_EQ(Json::parse(result_line(request, result, true)),
            (Json{{"id", "a\"\xc3\xa9"}, {"prompt_logprobs", {nullptr, -0.1, -1e-7, -3}}}));
  result.logprobs = {std::numeric_limits<float>::quiet_NaN()};
  EXPECT_TRUE(Json::parse(result_line(request, result, false))["logprobs"][0].is_null());
  result.logprobs.clear();
  EXPECT_EQ(Json::parse(result_line(request, result, true))["prompt_logprobs"], Json{nullptr});
}

TEST_F(Requests, FloatsComeBackExactly) {
  Request request;
  request.id = "a";
  Result result;
  float value = -1.0F;
  for (int i = 0; i < 2000; ++i) {
    value = std::nextafter(value * 1.013F, 0.0F);
    result.logprobs.push_back(value);
  }
  const Json json = Json::parse(result_line(request, result, false));
  for (std::size_t i = 0; i < result.logprobs.size(); ++i) {
    EXPECT_EQ(json["logprobs"][i].get<float>(), result.logprobs[i]);
  }
}

TEST_F(Requests, WritesErrors) {
  Request request;
  request.line = 12;
  request.error = "bad \"thing\" \xff";
  EXPECT_EQ(error_line(request), "{\"line\":12,\"error\":\"bad \\\"thing\\\" \xef\xbf\xbd\"}");
  request.id = "x";
  EXPECT_EQ(Json::parse(error_line(request))["id"], "x");
  EXPECT_EQ(error_in(error_line(request)), "bad \"thing\" \xef\xbf\xbd");
  EXPECT_EQ(error_in(with_weights(error_line(request), "w")), error_in(error_line(request)));
  request.id = R"(",error":"no)";
  Result result;
  result.finish_reason = "stop";
  for (const char c : std::string(R"(",error":"no)")) result.tokens.push_back(c);
  result.text = R"(",error":"no)";
  for (const bool scoring : {false, true}) {
    EXPECT_EQ(error_in(result_line(request, result, scoring)), std::nullopt);
  }
}

TEST_F(Requests, EncodesPromptsWithTheModelsTokenizer) {
  // Many prompts, so that several threads take part where there are cores.
  const std::string folder = std::string(ATOLL_SOURCE_DIR) + "/tests/data/tokenizers/bytes.json";
  std::ifstream file(folder);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  const ModelText text(tokenizer_from_json(json));
  limits_.text = &text;
  limits_.vocab = 705;  // one id less than the tokenizer has
  std::string lines;
  for (int i = 0; i < 2000; ++i) {
    lines += Json({{"id", std::to_string(i)}, {"prompt", "In the beginning, " + std::to_string(i)}})
                 .dump() +
             "\n";
  }
  lines += R"({"id": "bare", "prompt": "the", "add_special_tokens": false})"
           "\n";
  lines += R"({"id": "wrong", "tokens": [1], "add_special_tokens": false})"
           "\n";
  lines += R"({"id": "beyond", "prompt": "<\u00e9>"})"
           "\n";
  const std::vector<Request> requests = read(lines);
  ASSERT_EQ(requests.size(), 2003U);
  EncodeMemory memory;
  for (int i = 0; i < 2000; ++i) {
    const Request& request = requests[static_cast<std::size_t>(i)];
    EXPECT_EQ(request.error, "");
    EXPECT_FALSE(request.prompt.has_value());
    EXPECT_EQ(request.tokens, text.encode("In the beginning, " + std::to_string(i), true, memory));
  }
  EXPECT_EQ(requests[2000].tokens, text.encode("the", false, memory));
  EXPECT_NE(requests[2001].error.find("is for a \"prompt\""), std::string::npos);
  EXPECT_NE(requests[2002].error.find("the token id 705"), std::string::npos);
  // A prompt is as long as its tokens, not as its text.
  limits_.max_positions = 12;
  limits_.default_max_tokens = 4;
  EXPECT_NE(read(R"({"id": "a", "prompt": "one two three four five six seven"})")[0].error.find(
                "the model has 12 positions"),
            std::string::npos);
  EXPECT_EQ(read(R"({"id": "a", "prompt": "the the the"})")[0].error, "");
}

TEST(TextOf, ReplacesWhatIsNotUtf8) {
  const ModelText bytes(256);
  const auto text = [&](std::initializer_list<std::int32_t> tokens) {
    return bytes.decode(std::vector<std::int32_t>(tokens), {});
  };
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(text({}), "");
  EXPECT_EQ(text({0xe2, 0x82, 0xac, 'x'}), "\xe2\x82\xacx");
  EXPECT_EQ(text({0xf0, 0x9f, 0x98, 0x80}), "\xf0\x9f\x98\x80");
  EXPECT_EQ(text({0x80, 'a'}), r + "a");
  EXPECT_EQ(text({0xc0, 0x80}), r + r);
  EXPECT_EQ(text({0xe2, 0x82}), r);
  EXPECT_EQ(text({0xe2, 0x82, 'a'}), r + "a");
  EXPECT_EQ(text({0xe0, 0x80, 0x80}), r + r + r);
  EXPECT_EQ(text({0xed, 0xa0, 0x80}), r + r + r);
  EXPECT_EQ(text({0xf0, 0x9f, 0x98, 0xe2, 0x82, 0xac}), r + "\xe2\x82\xac");
  EXPECT_EQ(text({0xf4, 0x90, 0x80, 0x80}), r + r + r + r);
  EXPECT_EQ(text({0xf5}), r);
  EXPECT_EQ(text({300, 'a', 0xe2, 300}), r + "a" + r + r);
}

}  // namespace
}  // namespace atl::io
