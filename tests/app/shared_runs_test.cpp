#include "app/run/shared_runs.hpp"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace atl {
namespace {

using Pages = std::vector<std::int32_t>;

/// Last pages and positions of a sequence's runs.
std::vector<std::pair<std::int32_t, std::int32_t>> runs_of(const SharedRuns& runs,
                                                           const Pages& pages,
                                                           std::int32_t filled) {
  std::vector<std::pair<std::int32_t, std::int32_t>> all;
  for (const SharedRuns::Run& run : runs.of(pages, filled)) {
    all.emplace_back(run.last_page, run.positions);
  }
  return all;
}

TEST(SharedRuns, AreCutWhereFewerGoOn) {
  const Pages a = {1, 2, 3, 4, 9}, b = {1, 2, 3, 5}, c = {1, 2, 6}, alone = {7, 8};
  SharedRuns runs(10);
  for (const auto& pages : {a, b, c, alone}) {
    runs.count(pages, static_cast<std::int32_t>(10 * pages.size()));
  }
  using Runs = std::vector<std::pair<std::int32_t, std::int32_t>>;
  EXPECT_EQ(runs_of(runs, a, 50), (Runs{{2, 20}, {3, 10}}));
  EXPECT_EQ(runs_of(runs, b, 40), (Runs{{2, 20}, {3, 10}}));
  EXPECT_EQ(runs_of(runs, c, 30), (Runs{{2, 20}}));
  EXPECT_TRUE(runs_of(runs, alone, 20).empty());
}

/// What a sequence has not computed yet is none of its own.
TEST(SharedRuns, AreOfWholePagesThatAreFilled) {
  SharedRuns runs(10);
  runs.count(Pages{1, 2, 3}, 29);
  runs.count(Pages{1, 2, 3}, 30);
  runs.count(Pages{1, 2}, 0);
  EXPECT_EQ(runs_of(runs, {1, 2, 3}, 29), runs_of(runs, {1, 2, 3}, 30));
  EXPECT_EQ(runs.of(Pages{1, 2, 3}, 30).size(), 1U);
  EXPECT_EQ(runs.of(Pages{1, 2, 3}, 30)[0].positions, 20);
  EXPECT_TRUE(runs.of(Pages{1, 2}, 0).empty());
}

}  // namespace
}  // namespace atl
