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

}  // namespace atl::comm
