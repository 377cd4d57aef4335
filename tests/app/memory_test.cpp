// How many KV pages a rank takes, and when its buffers are as large as any routing can make them:
// decided without a GPU.

#include "app/plan/memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "compute/memory_plan.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

TEST(Memory, RequestsWantAnEvenShareAndOneLargeRequestMore) {
  const std::vector<std::int64_t> pages = {1, 40, 7, 2, 50};
  EXPECT_EQ(pages_wanted(pages, 1).useful, 100) << "all there are";
  EXPECT_EQ(pages_wanted(pages, 4).largest, 50);
  EXPECT_EQ(pages_wanted(pages, 4).useful, 100) << "25 and 100, but no more than all";
  const std::vector<std::int64_t> many(1000, 3);
  EXPECT_EQ(pages_wanted(many, 100).useful, 30 + 6);
  EXPECT_EQ(pages_wanted({}, 8).largest, 1);
  EXPECT_EQ(pages_wanted({}, 8).useful, 1);
}

TEST(Memory, AHostsCacheTakesItsPart) {
  compute::BackendOptions options = tiny_options();
  options.num_pages = 1;
  const std::int64_t page = compute::cpu_kv_bytes(options);
  EXPECT_EQ(page, 3 * 64 * 2 * 2 * 16 * 2) << "layers, tokens, keys and values, heads, bfloat16";
  const auto holding = [page](double pages) {
    return static_cast<double>(page) * pages / kv_share_of_host_memory;
  };
  EXPECT_EQ(pages_in_host_memory(options, holding(10.5), {3, 8}), 8) << "no more than is useful";
  EXPECT_EQ(pages_in_host_memory(options, holding(10.5), {3, 30}), 10);
  EXPECT_EQ(pages_in_host_memory(options, holding(0.5), {3, 30}), 0);
}

TEST(Memory, FittingIsDecidedToTheByte) {
  compute::BackendOptions options = tiny_options();
  std::int64_t bytes = compute::cuda_memory_plan(options).total();
  EXPECT_TRUE(fits_device(options, bytes));
  options.receive_rows = 3;
  EXPECT_FALSE(fits_device(options, bytes));
  bytes += 2 * 512;  // two buffers of 3 rows of 48 BF16 values, in 256s
  EXPECT_TRUE(fits_device(options, bytes));
}

// With positions for far more pages than fit, tables of positions and of pages grow with each page;
// with few, only the cache does.
TEST(Memory, FittingPagesAreTheMost) {
  for (const int max_positions : {1 << 20, 640}) {
    compute::BackendOptions options = tiny_options();
    options.shape.max_positions = max_positions;
    options.num_pages = 1;
    std::int64_t bytes = compute::cuda_memory_plan(options).total() - 1;
    EXPECT_EQ(fitting_pages(options, bytes, 1), 0);
    EXPECT_EQ(fitting_pages(options, bytes, 500), 0);
    std::int64_t before = 0;
    for (const int extra : {1, 100000, 333333, 1000000}) {
      bytes += extra;
      const std::int64_t pages = fitting_pages(options, bytes, 500);
      EXPECT_GE(pages, std::max<std::int64_t>(before, 1));
      EXPECT_LT(pages, 500);
      options.num_pages = pages;
      EXPECT_TRUE(fits_device(options, bytes)) << pages;
      EXPECT_EQ(fitting_pages(options, bytes, pages), pages);
      options.num_pages = pages + 1;
      EXPECT_FALSE(fits_device(options, bytes)) << pages;
      before = pages;
    }
    EXPECT_GT(before, 10);
  }
}

TEST(Memory, BuffersForAnyRoutingComeBeforeMoreThanTheLargestRequest) {
  compute::BackendOptions options = tiny_options();
  options.receive_rows = 16;
  options.most_receive_rows = 500;
  compute::BackendOptions any = for_any_routing(options);
  EXPECT_EQ(any.receive_rows, 500);
  const auto beside_most = [&any](std::int64_t pages) {
    any.num_pages = pages;
    return compute::cuda_memory_plan(any).total();
  };
  const auto pages_in = [&options](std::int64_t bytes, std::int64_t useful, std::int64_t largest) {
    return pages_on_device(options, bytes, {largest, useful});
  };
  std::int64_t bytes = beside_most(300);
  EXPECT_EQ(pages_in(bytes, 1000, 300), 300);
  EXPECT_EQ(pages_in(bytes, 5, 5), 5) << "no more than is useful";
  const std::int64_t more = fitting_pages(options, bytes, 1000);
  ASSERT_GT(more, 300);
  ASSERT_LE(more, 600);
  EXPECT_EQ(pages_in(bytes, 1000, 301), more) << "for the largest request";
  bytes = beside_most(1);
  const std::int64_t many = fitting_pages(options, bytes, 1000);
  ASSERT_GT(many, 2);
  EXPECT_EQ(pages_in(bytes, 1000, 1), many) << "for half of the cache";
}

}  // namespace
}  // namespace atl::testing
