// The moves between ranks that share work on the rows of all of them.

#include "comm/row_move.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace atl::comm {
namespace {

using Rows = std::vector<std::string>;
using Plan = std::function<void(FirstRows, int, RowMove&)>;

const std::vector<std::int64_t> uneven = {0, 2, 2, 5, 6};  // the second member has none
constexpr int members = 4;
constexpr std::size_t all = 6;

std::string name(std::size_t row, std::size_t part) {
  return std::to_string(row) + "." + std::to_string(part);
}

/// What each member's `recv` holds once all have sent from `send`; in place where both are one.
std::vector<Rows> carried(const Plan& plan, const std::vector<Rows>& send, std::vector<Rows> recv) {
  std::vector<RowMove> moves(members, RowMove(members));
  for (int m = 0; m < members; ++m) plan(uneven, m, moves[static_cast<std::size_t>(m)]);
  for (std::size_t from = 0; from < members; ++from) {
    EXPECT_EQ(moves[from].send_counts[from], 0);
    for (std::size_t to = 0; to < members; ++to) {
      const int rows = moves[from].send_counts[to];
      EXPECT_EQ(moves[to].recv_counts[from], rows) << from << " to " << to;
      const auto first = static_cast<std::size_t>(moves[from].send_offsets[to]);
      const auto there = static_cast<std::size_t>(moves[to].recv_offsets[from]);
      for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
        recv[to].at(there + r) = send[from].at(first + r);
      }
    }
  }
  return recv;
}

std::size_t first_of(std::size_t member) {
  return static_cast<std::size_t>(uneven[member]);
}

TEST(RowMove, OwnRowsGoToAll) {
  std::vector<Rows> have(members, Rows(all));
  for (std::size_t m = 0; m < members; ++m) {
    for (std::size_t r = first_of(m); r < first_of(m + 1); ++r) have[m][r] = name(r, 0);
  }
  for (const Rows& rows : carried(plan_rows_to_all, have, have)) {
    for (std::size_t r = 0; r < all; ++r) EXPECT_EQ(rows[r], name(r, 0));
  }
}

TEST(RowMove, PartsGoToAll) {
  std::vector<Rows> have(members, Rows(members * all));
  for (std::size_t m = 0; m < members; ++m) {
    for (std::size_t r = 0; r < all; ++r) have[m][m * all + r] = name(r, m);
  }
  for (const Rows& rows : carried(plan_parts_to_all, have, have)) {
    for (std::size_t m = 0; m < members; ++m) {
      for (std::size_t r = 0; r < all; ++r) EXPECT_EQ(rows[m * all + r], name(r, m));
    }
  }
}

TEST(RowMove, PartsGoToTheirRowsOwners) {
  std::vector<Rows> send(members, Rows(all));
  std::vector<Rows> recv;
  for (std::size_t m = 0; m < members; ++m) {
    for (std::size_t r = 0; r < all; ++r) send[m][r] = name(r, m);
    recv.emplace_back(members * (first_of(m + 1) - first_of(m)));
  }
  const std::vector<Rows> come = carried(plan_parts_to_owners, send, recv);
  for (std::size_t to = 0; to < members; ++to) {
    const std::size_t own = first_of(to + 1) - first_of(to);
    for (std::size_t m = 0; m < members; ++m) {
      for (std::size_t r = 0; r < own; ++r) {
        // What a rank has itself stays where it was computed.
        EXPECT_EQ(come[to][m * own + r], m == to ? "" : name(first_of(to) + r, m));
      }
    }
  }
}

}  // namespace
}  // namespace atl::comm
