#include "io/seen_ids.hpp"

#include <gtest/gtest.h>

#include <string>

namespace atl::io {
namespace {

TEST(SeenIds, KnowsTheFirstLineOfEach) {
  SeenIds ids;
  constexpr std::int64_t count = 20000;  // some times as many as there are places for at first
  for (std::int64_t i = 1; i <= count; ++i) ASSERT_EQ(ids.line_of(std::to_string(i), i), 0) << i;
  for (std::int64_t i = 1; i <= count; ++i) {
    ASSERT_EQ(ids.line_of(std::to_string(i), count + i), i);
  }
  EXPECT_EQ(ids.line_of("", count + 1), 0);
  EXPECT_EQ(ids.line_of("", count + 2), count + 1);
}

TEST(SeenIds, TakesAnyLineAndLength) {
  SeenIds ids;
  constexpr std::int64_t last = (std::int64_t{1} << 40) - 1;
  const std::string longest(1 << 16, 'x');
  EXPECT_EQ(ids.line_of(longest, last), 0);
  EXPECT_EQ(ids.line_of(longest + "y", 1), 0);
  EXPECT_EQ(ids.line_of(longest, 2), last);
  EXPECT_EQ(ids.line_of(longest + "y", 2), 1);
}

}  // namespace
}  // namespace atl::io
