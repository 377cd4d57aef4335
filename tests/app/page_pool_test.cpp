#include "app/run/page_pool.hpp"

#include <gtest/gtest.h>

#include <set>

#include "compute/error.hpp"

namespace atl {
namespace {

TEST(PagePool, GivesEveryPageOnceUntilItIsBack) {
  PagePool pool(5);
  std::set<std::int32_t> pages;
  for (int left = 5; left > 0; --left) {
    EXPECT_EQ(pool.num_free(), left);
    EXPECT_TRUE(pages.insert(pool.take()).second);
  }
  EXPECT_EQ(pages, (std::set<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_THROW(pool.take(), Error);
  pool.give_back(3);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.take(), 3);
  EXPECT_EQ(pool.num_free(), 0);
}

TEST(PagePool, APageIsFreeWhenItsLastHolderGivesItBack) {
  PagePool pool(2);
  const std::int32_t page = pool.take();
  EXPECT_EQ(pool.holders(page), 1);
  pool.share(page);
  pool.share(page);
  EXPECT_EQ(pool.holders(page), 3);
  pool.give_back(page);
  pool.give_back(page);
  EXPECT_EQ(pool.holders(page), 1);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_NE(pool.take(), page);
  pool.give_back(page);
  EXPECT_EQ(pool.holders(page), 0);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_EQ(pool.take(), page);
  EXPECT_EQ(pool.holders(page), 1);  // of an earlier use none are left
}

TEST(PagePool, RefusesMisuse) {
  PagePool pool(2);
  const std::int32_t page = pool.take();
  const std::int32_t other = 1 - page;
  EXPECT_THROW(pool.give_back(other), Error);
  EXPECT_THROW(pool.share(other), Error);
  pool.give_back(page);
  EXPECT_THROW(pool.give_back(page), Error);
  EXPECT_THROW(pool.give_back(2), Error);
  EXPECT_THROW(pool.share(-1), Error);
  EXPECT_THROW(static_cast<void>(pool.holders(2)), Error);
  EXPECT_EQ(pool.num_free(), 2);  // nothing has changed
  EXPECT_THROW(PagePool(0).take(), Error);
}

}  // namespace
}  // namespace atl
