#include "app/run/holder_exchange.hpp"

#include <algorithm>
#include <array>

#include "app/run/expert_exchange.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

/// The first lane carries counts and the rows behind them.
constexpr std::array kinds = {StepKind::held_rows, StepKind::inner_rows, StepKind::held_results};

std::size_t bytes_of_row(StepKind kind, const RowsSetup& setup, std::size_t members) {
  const auto hidden = static_cast<std::size_t>(setup.shape->hidden);
  const std::size_t element = setup.row_bytes / hidden;
  switch (kind) {
    case StepKind::held_rows:
      return setup.row_bytes;
    case StepKind::inner_rows:
      return static_cast<std::size_t>(setup.shape->moe_intermediate) / members * element;
    default:
      return setup.row_bytes / members;
  }
}

}  // namespace

HolderExchange::HolderExchange(const RowsSetup& setup, compute::Chunk& chunk)
    : setup_(setup),
      chunk_(chunk),
      world_ranks_(setup.groups->world_ranks(Share::holder)),
      place_(setup.groups->of(Share::holder).rank()),
      num_experts_(
          static_cast<std::size_t>(std::max(1, setup.placement->most_experts_on_a_rank()))),
      counts_(world_ranks_.size() * num_experts_),
      first_row_(world_ranks_.size() + 1),
      next_row_(world_ranks_.size()),
      move_(static_cast<int>(world_ranks_.size())) {
  blocks_.reserve(counts_.size());
  for (const StepKind kind : kinds) {
    comm::LaneOptions options;
    options.transport = setup.transport;
    options.row_bytes = bytes_of_row(kind, setup, world_ranks_.size());
    options.device = setup.device;
    if (kind == StepKind::held_rows) {
      options.counts_per_member = static_cast<int>(num_experts_);
    } else {
      options.peers = comm::Peers{};
    }
    row_bytes_.push_back(options.row_bytes);
    lanes_.push_back(std::make_unique<comm::Lane>(setup.groups->of(Share::holder), options));
  }
}

std::size_t HolderExchange::lane_of(StepKind kind) {
  const auto found = std::find(kinds.begin(), kinds.end(),
                               kind == StepKind::held_counts ? StepKind::held_rows : kind);
  require(found != kinds.end(), "internal: {} is no exchange of a holder", name_of(kind));
  return static_cast<std::size_t>(found - kinds.begin());
}

std::size_t HolderExchange::most_requests() const {
  std::size_t most = 0;
  for (const auto& lane : lanes_) most = std::max(most, lane->most_requests());
  return most;
}

void HolderExchange::tell(std::span<const compute::RowBlock> blocks) {
  const auto place = static_cast<std::size_t>(place_);
  std::fill(counts_.begin(), counts_.end(), 0);
  for (const compute::RowBlock& block : blocks) {
    count(place, static_cast<std::size_t>(block.local_expert)) += block.num_rows;
  }
  comm::Counters& counters = lanes_.front()->counters();
  const auto mine = std::span(counts_).subspan(place * num_experts_, num_experts_);
  for (const int peer : counters.peers().to) {
    std::copy(mine.begin(), mine.end(), counters.to(peer).begin());
  }
  std::fill(move_.send_counts.begin(), move_.send_counts.end(), 0);
  counters.start(move_, nullptr);
}

bool HolderExchange::told() {
  comm::Counters& counters = lanes_.front()->counters();
  if (!counters.done()) return false;
  for (const int peer : counters.peers().from) {
    const auto heard = counters.from(peer);
    std::copy_n(heard.begin(), num_experts_,
                counts_.begin() +
                    static_cast<std::ptrdiff_t>(static_cast<std::size_t>(peer) * num_experts_));
  }
  for (std::size_t m = 0; m < world_ranks_.size(); ++m) {
    std::int64_t rows = 0;
    for (std::size_t e = 0; e < num_experts_; ++e) rows += count(m, e);
    first_row_[m + 1] = first_row_[m] + rows;
  }
  chunk_.all_expert_rows = first_row_.back();
  chunk_.first_expert_row = first_row_[static_cast<std::size_t>(place_)];
  const std::int64_t end = first_row_[static_cast<std::size_t>(place_) + 1];
  chunk_.reserve_experts({chunk_.all_expert_rows, end - chunk_.first_expert_row});
  list_blocks();
  return true;
}

/// Of a member its rows lie expert by expert.
void HolderExchange::list_blocks() {
  blocks_.clear();
  next_row_.assign(first_row_.begin(), first_row_.end() - 1);
  for (std::size_t e = 0; e < num_experts_; ++e) {
    for (std::size_t m = 0; m < world_ranks_.size(); ++m) {
      const std::int32_t rows = count(m, e);
      if (rows == 0) continue;
      const auto* in = static_cast<const std::byte*>(chunk_.expert_rows) +
                       static_cast<std::size_t>(next_row_[m]) * row_bytes_.front();
      blocks_.push_back({static_cast<std::int32_t>(e), rows, in, nullptr});
      next_row_[m] += rows;
    }
  }
}

void HolderExchange::post(StepKind kind) {
  const void* send = nullptr;
  void* recv = nullptr;
  if (kind == StepKind::held_rows) {
    comm::plan_rows_to_all(first_row_, place_, move_);
    send = recv = chunk_.expert_rows;
  } else if (kind == StepKind::inner_rows) {
    comm::plan_parts_to_all(first_row_, place_, move_);
    send = recv = chunk_.inner_rows;
  } else {
    comm::plan_parts_to_owners(first_row_, place_, move_);
    send = chunk_.down_send;
    recv = chunk_.down_recv;
  }
  count_sent(*setup_.traffic, Share::holder, move_, world_ranks_, row_bytes_[lane_of(kind)]);
  lane(kind).start(move_, send, recv);
}

}  // namespace atl
