#include "app/run/owner_exchange.hpp"

#include <algorithm>
#include <array>

#include "app/plan/job_layout.hpp"
#include "app/run/expert_exchange.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

constexpr std::array kinds = {StepKind::gather, StepKind::head_sums, StepKind::heads,
                              StepKind::outputs};

/// What one row of each exchange takes; 0: there is no such exchange.
std::size_t bytes_of_row(StepKind kind, const RowsSetup& setup) {
  const ModelShape& shape = *setup.shape;
  const compute::AttentionShare& share = *setup.attention;
  const auto members = static_cast<std::size_t>(share.members);
  const std::size_t element = setup.row_bytes / static_cast<std::size_t>(shape.hidden);
  switch (kind) {
    case StepKind::gather:
      return setup.row_bytes;
    case StepKind::head_sums:
      return shape.qk_norm == QkNorm::whole_row
                 ? static_cast<std::size_t>(share.sums_per_member(shape)) * sizeof(float)
                 : 0;
    case StepKind::heads:
      if (compute::is_sum(share.output)) return 0;
      return static_cast<std::size_t>(shape.heads_width()) / members * element;
    case StepKind::outputs:
      if (share.output == compute::OutputCut::rows) return 0;
      if (share.output == compute::OutputCut::sum_bf16) return setup.row_bytes;
      return share.output == compute::OutputCut::sum
                 ? static_cast<std::size_t>(shape.hidden) * sizeof(float)
                 : setup.row_bytes / members;
    default:
      return 0;
  }
}

}  // namespace

OwnerExchange::OwnerExchange(const RowsSetup& setup, compute::Chunk& chunk)
    : setup_(setup),
      chunk_(chunk),
      world_ranks_(setup.groups->world_ranks(Share::owner)),
      place_(setup.groups->of(Share::owner).rank()),
      first_row_(world_ranks_.size() + 1),
      move_(static_cast<int>(world_ranks_.size())) {
  for (const StepKind kind : kinds) {
    comm::LaneOptions options;
    options.transport = setup.transport;
    options.row_bytes = bytes_of_row(kind, setup);
    options.device = setup.device;
    options.peers = comm::Peers{};
    row_bytes_.push_back(options.row_bytes);
    lanes_.push_back(options.row_bytes == 0
                         ? nullptr
                         : std::make_unique<comm::Lane>(setup.groups->of(Share::owner), options));
  }
}

std::size_t OwnerExchange::lane_of(StepKind kind) {
  const auto found = std::find(kinds.begin(), kinds.end(), kind);
  require(found != kinds.end(), "internal: {} is no exchange of an owner", name_of(kind));
  return static_cast<std::size_t>(found - kinds.begin());
}

std::size_t OwnerExchange::most_requests() const {
  std::size_t most = 0;
  for (const auto& lane : lanes_) {
    if (lane) most = std::max(most, lane->most_requests());
  }
  return most;
}

void OwnerExchange::post(StepKind kind) {
  const int members = static_cast<int>(world_ranks_.size());
  for (int m = 0; m < members; ++m) {
    first_row_[static_cast<std::size_t>(m) + 1] = rows_of_member(chunk_.all_rows, m, members).end;
  }
  const void* send = nullptr;
  void* recv = nullptr;
  if (kind == StepKind::gather) {
    comm::plan_rows_to_all(first_row_, place_, move_);
    send = recv = chunk_.normed;
  } else if (kind == StepKind::head_sums) {
    comm::plan_parts_to_all(first_row_, place_, move_);
    send = recv = chunk_.head_sums;
  } else if (kind == StepKind::heads && chunk_.output == compute::OutputCut::columns) {
    comm::plan_parts_to_all(first_row_, place_, move_);
    send = recv = chunk_.heads_recv;
  } else {
    const bool heads = kind == StepKind::heads;
    comm::plan_parts_to_owners(first_row_, place_, move_);
    send = heads ? chunk_.heads_send : chunk_.output_send;
    recv = heads ? chunk_.heads_recv : chunk_.output_recv;
  }
  count_sent(*setup_.traffic, Share::owner, move_, world_ranks_, row_bytes_[lane_of(kind)]);
  lane(kind).start(move_, send, recv);
}

}  // namespace atl
