#include "app/plan/chunking.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace atl {
namespace {

RankLoad tokens(std::int64_t prompt, std::int32_t decoding) {
  RankLoad load;
  load.prompt_tokens = prompt;
  load.decoding = decoding;
  return load;
}

TEST(Chunking, TheBusiestRankDecidesHowManyChunks) {
  const ChunkLimits limits{.max_pass_tokens = 100, .min_chunk_tokens = 10, .max_chunks = 4};
  const auto count = [](const std::vector<RankLoad>& loads, const ChunkLimits& of) {
    return chunk_count(most_pass_rows(loads, of), of);
  };
  EXPECT_EQ(most_pass_rows(std::vector{tokens(0, 0), tokens(0, 0)}, limits), 0);
  EXPECT_EQ(count({tokens(0, 0), tokens(0, 1)}, limits), 1);
  EXPECT_EQ(count({tokens(3, 0), tokens(15, 4)}, limits), 1);
  EXPECT_EQ(count({tokens(16, 4), tokens(0, 2)}, limits), 2);
  EXPECT_EQ(count({tokens(1000, 0)}, limits), 4);
  // No more rows are in a pass than it may have.
  EXPECT_EQ(
      count({tokens(1000, 0)}, {.max_pass_tokens = 35, .min_chunk_tokens = 10, .max_chunks = 8}),
      3);
}

TEST(Chunking, ChunksCoverAllRowsAndDifferByOneAtMost) {
  for (int rows = 0; rows < 50; ++rows) {
    for (int chunks = 1; chunks <= 8; ++chunks) {
      std::int64_t begin = 0;
      for (int c = 0; c < chunks; ++c) {
        const std::int64_t size = chunk_end(rows, c, chunks) - begin;
        EXPECT_GE(size, rows / chunks);
        EXPECT_LE(size, rows / chunks + 1);
        begin += size;
      }
      EXPECT_EQ(begin, rows);
    }
  }
}

}  // namespace
}  // namespace atl
