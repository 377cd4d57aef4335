#include "comm/row_move.hpp"

#include <numeric>
#include <utility>

namespace atl::comm {

RowMove::RowMove(int num_members)
    : send_counts(static_cast<std::size_t>(num_members)),
      send_offsets(static_cast<std::size_t>(num_members)),
      recv_counts(static_cast<std::size_t>(num_members)),
      recv_offsets(static_cast<std::size_t>(num_members)) {}

void RowMove::reverse() {
  std::swap(send_counts, recv_counts);
  std::swap(send_offsets, recv_offsets);
}

std::int64_t RowMove::rows_sent() const {
  return std::accumulate(send_counts.begin(), send_counts.end(), std::int64_t{0});
}

std::int64_t RowMove::rows_received() const {
  return std::accumulate(recv_counts.begin(), recv_counts.end(), std::int64_t{0});
}

namespace {

struct Rows {
  std::int64_t count = 0;
  std::int64_t offset = 0;
};

/// sent(m) and received(m) for every member but the own place; own rows never travel.
template <class Sent, class Received>
void plan(RowMove& move, int place, const Sent& sent, const Received& received) {
  for (std::size_t m = 0; m < move.send_counts.size(); ++m) {
    const bool own = m == static_cast<std::size_t>(place);
    const Rows to = sent(m);
    const Rows from = received(m);
    move.send_counts[m] = own ? 0 : static_cast<int>(to.count);
    move.send_offsets[m] = static_cast<int>(to.offset);
    move.recv_counts[m] = own ? 0 : static_cast<int>(from.count);
    move.recv_offsets[m] = static_cast<int>(from.offset);
  }
}

Rows rows_of(FirstRows first, std::size_t member) {
  return {first[member + 1] - first[member], first[member]};
}

}  // namespace

void plan_rows_to_all(FirstRows first, int place, RowMove& move) {
  const Rows own = rows_of(first, static_cast<std::size_t>(place));
  plan(
      move, place, [&](std::size_t) { return own; },
      [&](std::size_t m) { return rows_of(first, m); });
}

void plan_parts_to_all(FirstRows first, int place, RowMove& move) {
  const std::int64_t all = first.back();
  plan(
      move, place,
      [&](std::size_t) {
        return Rows{all, place * all};
      },
      [&](std::size_t m) {
        return Rows{all, static_cast<std::int64_t>(m) * all};
      });
}

void plan_parts_to_owners(FirstRows first, int place, RowMove& move) {
  const std::int64_t own = rows_of(first, static_cast<std::size_t>(place)).count;
  plan(
      move, place, [&](std::size_t m) { return rows_of(first, m); },
      [&](std::size_t m) {
        return Rows{own, static_cast<std::int64_t>(m) * own};
      });
}

}  // namespace atl::comm
