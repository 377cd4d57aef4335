#include "io/json_text.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/fixtures.hpp"

namespace atl::io {
namespace {

std::string refusal(const std::string& text) {
  return error_of([&] { parse_json(text, "x.json"); });
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(JsonText, NamesLineColumnAndKey) {
  EXPECT_EQ(refusal("{\n  \"a\": 1,\n  \"b\": [1, 2,]\n}"),
            "x.json: not valid JSON: line 3, column 14 (after key \"b\"): unexpected ']'; expected "
            "'[', '{', or a literal");
  EXPECT_TRUE(contains(refusal("{\"a\": 1,}"), "line 1, column 9 (after key \"a\")"));
  EXPECT_TRUE(contains(refusal("{\"a\" 1}"), "line 1, column 6 (after key \"a\")"));
  EXPECT_TRUE(contains(refusal("// no comments\n{}"), "line 1, column 1: invalid literal"));
  EXPECT_TRUE(contains(refusal("{\"a\": 'x'}"), "line 1, column 7 (after key \"a\")"));
  EXPECT_TRUE(contains(refusal("{\"a\": True}"), "column 7 (after key \"a\"): invalid literal"));
  EXPECT_TRUE(contains(refusal("{}\n}"), "line 2, column 1"));
  EXPECT_TRUE(contains(refusal("{\"a\": 1"), "line 1, column 8 (after key \"a\"): unexpected end"));
  EXPECT_TRUE(contains(refusal("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"));
  EXPECT_TRUE(contains(refusal(""), "it is empty"));
  EXPECT_TRUE(contains(refusal(" \n"), "it is empty"));
  EXPECT_TRUE(contains(refusal(std::string("\xff\xfe{\0}\0", 6)), "UTF-16"));
  EXPECT_TRUE(contains(refusal(std::string("{\0}\0", 4)), "UTF-16"));
  EXPECT_TRUE(contains(refusal(std::string(100, '[')), "nested more than"));
  // The file's own bytes stay out of the message.
  const std::string message = refusal("{\"a\": \"\xff\xfe" + std::string(1000, 'x'));
  EXPECT_TRUE(message.size() < 200 && !contains(message, "\xff")) << message;
}

TEST(JsonText, TakesPythonsNumbers) {
  const nlohmann::json json = parse_json(
      R"({"a": NaN, "b": [Infinity, -Infinity], "c": "NaN \" Infinity", "d\"": {"e": NaN}})", "x");
  EXPECT_EQ(json["a"], "NaN");
  EXPECT_EQ(json["b"], (nlohmann::json{"Infinity", "-Infinity"}));
  EXPECT_EQ(json["c"], "NaN \" Infinity");
  EXPECT_EQ(json["d\""]["e"], "NaN");
  // Places are those of the text as it was.
  EXPECT_TRUE(contains(refusal("{\"a\": NaN, \"b\": NaN,}"), "line 1, column 21"));
  EXPECT_TRUE(contains(refusal("{\"a\": NaNs}"), "line 1, column 10"));
}

TEST(JsonText, TakesNumbersThatNoDoubleHolds) {
  const std::string digits(400, '9');
  std::vector<std::string> repeated = {"before"};
  const nlohmann::json json = parse_json(
      R"({"a": 1e400, "b": [-1.5E+400, 1e-400, -2, 0.25], "c": "1e400", "c": )" + digits + "}", "x",
      &repeated);
  EXPECT_EQ(json["a"], "1e400");
  EXPECT_EQ(json["b"], (nlohmann::json{"-1.5E+400", 0.0, -2, 0.25}));
  EXPECT_EQ(json["c"], digits);
  EXPECT_EQ(repeated, (std::vector<std::string>{"before", "c"}));
  EXPECT_EQ(parse_json("-1e400", "x"), "-1e400");
  // What is no number of JSON is refused; the place is the last byte that was read.
  EXPECT_TRUE(contains(refusal("[1e400, 01e400]"), "line 1, column 15"));
  EXPECT_TRUE(contains(refusal("[1e400, 1.e400]"), "line 1, column 11"));
  EXPECT_TRUE(contains(refusal("[1e400, +1e400]"), "line 1, column 9"));
  EXPECT_TRUE(contains(refusal("[1e400-3]"), "line 1, column 8"));
  EXPECT_TRUE(contains(refusal("{\n\"a\": 1e400,\n\"b\": 1e400,}"), "line 3, column 12"));
}

TEST(JsonText, OfAKeyThatComesTwiceTheLastCounts) {
  std::vector<std::string> repeated;
  const nlohmann::json json = parse_json(
      R"({"a": 1, "b": {"a": 2, "c": 3}, "d": [{"a": 4}, {"a": 5}], "a": 6})", "x", &repeated);
  EXPECT_EQ(json["a"], 6);
  EXPECT_EQ(repeated, (std::vector<std::string>{"a"}));
  repeated.clear();
  parse_json(R"({"b": {"a": 2, "a": 3}})", "x", &repeated);
  EXPECT_EQ(repeated, (std::vector<std::string>{"a"}));
}

class JsonTextFile : public FolderTest {};

TEST_F(JsonTextFile, IsAnObject) {
  std::ofstream(path("a")) << "{\"a\": 1}";
  EXPECT_EQ(read_json_object(path("a"), "x")["a"], 1);
  std::ofstream(path("a")) << "[1]";
  EXPECT_EQ(error_of([&] { read_json_object(path("a"), "x"); }), "x: [1] instead of an object");
  EXPECT_EQ(error_of([&] { read_json_object(path("none"), "x"); }), "x: No such file or directory");
}

}  // namespace
}  // namespace atl::io
