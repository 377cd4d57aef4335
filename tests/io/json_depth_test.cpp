#include "io/json_depth.hpp"

#include <gtest/gtest.h>

#include <string>

#include "compute/error.hpp"

namespace atl::io {
namespace {

std::string nested(int depth) {
  return std::string(static_cast<std::size_t>(depth), '[') + "1" +
         std::string(static_cast<std::size_t>(depth), ']');
}

TEST(JsonDepth, TakesWhatFilesHave) {
  EXPECT_NO_THROW(require_shallow_json("", "x"));
  EXPECT_NO_THROW(require_shallow_json(nested(64), "x"));
  EXPECT_NO_THROW(require_shallow_json(R"({"a": [{"b": [1, 2]}], "c": {}})", "x"));
}

TEST(JsonDepth, RefusesDeepNesting) {
  EXPECT_THROW(require_shallow_json(nested(65), "x"), Error);
  EXPECT_THROW(require_shallow_json(nested(100000), "x"), Error);
  EXPECT_THROW(require_shallow_json(std::string(100000, '{'), "x"), Error);
}

TEST(JsonDepth, BracketsSideBySideAreNotDeep) {
  std::string text = "[";
  for (int i = 0; i < 1000; ++i) text += "[],{},";
  EXPECT_NO_THROW(require_shallow_json(text + "0]", "x"));
}

TEST(JsonDepth, BracketsInStringsDoNotCount) {
  EXPECT_NO_THROW(require_shallow_json('"' + std::string(1000, '[') + '"', "x"));
  EXPECT_NO_THROW(require_shallow_json(R"("\")" + std::string(1000, '[') + '"', "x"));
  // An escaped backslash does not escape the quote behind it.
  EXPECT_THROW(require_shallow_json(R"("\\")" + nested(1000), "x"), Error);
}

}  // namespace
}  // namespace atl::io
