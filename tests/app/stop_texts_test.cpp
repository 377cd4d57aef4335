// Texts that end a result: found in one token, over several, where they begin again in themselves.

#include "app/run/stop_texts.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace atl {
namespace {

/// Adds tokens until one ends the output; its number, or -1.
int end_of(StopTexts& stops, const std::vector<std::string>& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (stops.add(tokens[i])) return static_cast<int>(i);
  }
  return -1;
}

TEST(StopTexts, AreFoundOverTokens) {
  StopTexts stops;
  stops.begin({"\n\n", "END"});
  EXPECT_EQ(end_of(stops, {"a", "b\n", "\nc", "d"}), 2);
  EXPECT_EQ(stops.found_at(), 2U);
  stops.begin({"\n\n", "END"});
  EXPECT_EQ(end_of(stops, {"EN", "EN", "", "D"}), 3);
  EXPECT_EQ(stops.found_at(), 2U);
  stops.begin({"aab"});
  EXPECT_EQ(end_of(stops, {"a", "a", "a", "b"}), 3);
  EXPECT_EQ(stops.found_at(), 1U);
  stops.begin({"x"});
  EXPECT_EQ(end_of(stops, {"a", "b"}), -1);
  stops.begin({});
  EXPECT_FALSE(stops.any());
  EXPECT_EQ(end_of(stops, {"a", "b"}), -1);
}

TEST(StopTexts, TheFirstThatBeginsCounts) {
  StopTexts stops;
  stops.begin({"cd", "bcde"});
  EXPECT_EQ(end_of(stops, {"abcdef"}), 0);
  EXPECT_EQ(stops.found_at(), 1U);
}

TEST(StopTexts, OneThatWasPassedOverIsNotFoundAgain) {
  StopTexts stops;
  stops.begin({"ab", "a long one"});
  EXPECT_TRUE(stops.add("xab"));
  EXPECT_FALSE(stops.add("y"));
  EXPECT_FALSE(stops.add("b"));
  EXPECT_TRUE(stops.add("..ab"));
  EXPECT_EQ(stops.found_at(), 7U);
}

TEST(StopTexts, AsInTheWholeText) {
  std::mt19937 random(3);
  const auto text_of = [&](std::size_t length) {
    std::string text;
    while (text.size() < length) text += static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int trial = 0; trial < 2000; ++trial) {
    std::vector<std::string> wanted;
    for (std::size_t i = 0; i < 1 + trial % 3U; ++i) wanted.push_back(text_of(1 + random() % 6));
    StopTexts stops;
    stops.begin(wanted);
    std::string text;
    bool found = false;
    while (!found && text.size() < 60) {
      const std::string token = text_of(random() % 4);
      text += token;
      found = stops.add(token);
      std::size_t first = std::string::npos;
      for (const std::string& stop : wanted) first = std::min(first, text.find(stop));
      ASSERT_EQ(found, first != std::string::npos) << text;
      if (found) {
        ASSERT_EQ(stops.found_at(), first) << text;
      }
    }
  }
}

}  // namespace
}  // namespace atl
