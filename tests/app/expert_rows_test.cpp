#include "app/plan/expert_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "compute/error.hpp"
#include "tests/app/plan_shapes.hpp"

namespace atl {
namespace {

/// A row by who sends it to which expert, and which of theirs it is.
struct Row {
  int from = -1, expert = -1, number = -1;
  bool operator==(const Row&) const = default;
};

int rows_of(int from, int expert) {
  return (from * 5 + expert * 3) % 4;  // some are none
}

LayerPlacement even(int experts, int ranks) {
  ModelShape shape = shape_with(1, 0);
  shape.num_experts = experts;
  return even_placement(shape, one_node(ranks)).of(0);
}

/// All ranks in one process: rows are put where the plans say, and looked for where the blocks say.
class World {
 public:
  World(int experts, int ranks) : placement_(even(experts, ranks)) {
    std::vector<int> all(index(ranks));
    std::iota(all.begin(), all.end(), 0);
    for (int rank = 0; rank < ranks; ++rank) {
      auto& rows = rows_.emplace_back(places_of_members(placement_, all), rank);
      std::vector<std::int32_t> counts;
      auto& packed = packed_.emplace_back();
      for (const auto [expert, holder] : placement_.replicas()) {
        counts.push_back(rows_of(rank, expert));
        for (int i = 0; i < counts.back(); ++i) packed.push_back({rank, expert, i});
      }
      rows.packed(counts);
      rows.plan_sends(moves_.emplace_back(ranks));
    }
    for (int to = 0; to < ranks; ++to) {
      for (int from = 0; from < ranks; ++from) {
        rows_[index(to)].heard_from(from, rows_[index(from)].told_to(to));
      }
      rows_[index(to)].plan_receives(moves_[index(to)]);
    }
  }

  void check() const {
    const int ranks = placement_.num_ranks();
    for (int to = 0; to < ranks; ++to) {
      std::vector<Row> arrived(static_cast<std::size_t>(moves_[index(to)].rows_received()));
      for (int from = 0; from < ranks; ++from) {
        const auto& out = moves_[index(from)];
        const auto& in = moves_[index(to)];
        ASSERT_EQ(out.send_counts[index(to)], in.recv_counts[index(from)]);
        if (from == to) {
          ASSERT_EQ(out.send_counts[index(to)], 0);  // own rows stay
        }
        std::copy_n(packed_[index(from)].begin() + out.send_offsets[index(to)],
                    out.send_counts[index(to)], arrived.begin() + in.recv_offsets[index(from)]);
      }
      check_blocks(to, arrived);
    }
  }

 private:
  static std::size_t index(int i) { return static_cast<std::size_t>(i); }

  void check_blocks(int rank, const std::vector<Row>& arrived) const {
    std::vector<ExpertBlock> blocks;
    rows_[index(rank)].blocks(blocks);
    EXPECT_LE(blocks.size(), rows_[index(rank)].most_blocks());
    std::vector<Row> found;
    for (const ExpertBlock& block : blocks) {
      const auto& from = block.own ? packed_[index(rank)] : arrived;
      found.insert(found.end(), from.begin() + block.first_row,
                   from.begin() + block.first_row + block.num_rows);
    }
    std::vector<Row> expected;  // expert by expert, and there rank by rank
    for (const int expert : placement_.experts_of(rank)) {
      for (int from = 0; from < placement_.num_ranks(); ++from) {
        for (int i = 0; i < rows_of(from, expert); ++i) expected.push_back({from, expert, i});
      }
    }
    EXPECT_EQ(found, expected) << "rank " << rank;
  }

  LayerPlacement placement_;
  std::vector<ExpertRows> rows_;
  std::vector<comm::RowMove> moves_;
  std::vector<std::vector<Row>> packed_;
};

TEST(ExpertRows, RowsAreFoundWhereTheyWerePut) {
  for (const int experts : {1, 2, 5, 8, 16}) {
    for (int ranks = 1; ranks <= experts; ++ranks) World(experts, ranks).check();
  }
}

TEST(ExpertRows, MoreRowsThanMpiCountsAreRefused) {
  ExpertRows rows(places_of_members(even(2, 2), {0, 1}), 0);
  const std::vector<std::int32_t> many = {2'000'000'000, 2'000'000'000};
  rows.packed(many);
  comm::RowMove move(2);
  EXPECT_NO_THROW(rows.plan_sends(move));
  ExpertRows more(places_of_members(even(4, 2), {0, 1}), 0);
  more.packed(std::vector<std::int32_t>{0, 0, 2'000'000'000, 2'000'000'000});
  EXPECT_THROW(more.plan_sends(move), Error);
}

}  // namespace
}  // namespace atl
