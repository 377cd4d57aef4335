#include "app/run/chunk_moves.hpp"

#include <algorithm>

namespace atl {

namespace {

comm::LaneOptions lane_options(const RowsSetup& setup) {
  comm::LaneOptions options;
  options.transport = setup.transport;
  options.row_bytes = setup.row_bytes;
  options.counts_per_member = std::max(1, setup.placement->most_experts_on_a_rank());
  options.first_message_bytes = setup.device == nullptr ? first_message_bytes : 0;
  options.device = setup.device;
  return options;
}

class LaneMoves final : public ChunkMoves {
 public:
  LaneMoves(const RowsSetup& setup, compute::Chunk& chunk)
      : setup_(setup),
        chunk_(chunk),
        lane_(*setup.world, lane_options(setup)),
        rows_(*setup.placement, setup.world->rank()),
        move_(setup.world->size()) {
    expert_blocks_.reserve(rows_.most_blocks());
    blocks_.reserve(rows_.most_blocks());
  }

  void post(const Step& step) override {
    if (step.kind == StepKind::counts) return tell(step.layer);
    if (step.kind == StepKind::combine) move_.reverse();
    count_bytes();
    if (alone()) return;
    if (step.kind == StepKind::dispatch) {
      lane_.start_told(move_, chunk_.dispatch_send, chunk_.dispatch_recv);
    } else {
      lane_.start(move_, chunk_.combine_send, chunk_.combine_recv);
    }
  }

  void poll_with(const Step& step, comm::Poller& poller) override {
    if (step.kind == StepKind::counts) {
      lane_.counters().poll_with(poller);
    } else if (!alone()) {
      lane_.poll_with(poller);
    }
  }

  bool done(const Step& step) override {
    if (step.kind != StepKind::counts) return alone() || lane_.done();
    if (!lane_.counters().done()) return false;
    for (int rank = 0; rank < rows_.num_ranks(); ++rank) {
      rows_.heard_from(rank, lane_.counters().from(rank));
    }
    rows_.plan_receives(move_);
    const std::int64_t arriving = move_.rows_received();
    if (setup_.device != nullptr && arriving > chunk_.receive_capacity) {
      ++setup_.traffic->receive_growths;
    }
    chunk_.reserve_receive(arriving);
    return true;
  }

  std::span<const compute::RowBlock> blocks(int /*layer*/) override {
    rows_.blocks(expert_blocks_);
    blocks_.clear();
    for (const ExpertBlock& block : expert_blocks_) {
      blocks_.push_back(row_block(block, chunk_, setup_.row_bytes));
      setup_.traffic->rows_computed += block.num_rows;
    }
    return blocks_;
  }

  comm::Awaited awaited(const Step& step) const override {
    return step.kind == StepKind::counts ? lane_.counters().awaited() : lane_.awaited();
  }
  std::size_t most_requests() const override { return lane_.most_requests(); }

 private:
  bool alone() const { return setup_.world->size() == 1; }

  /// Tells the other ranks how many rows go to each of their experts; few rows go along.
  void tell(int layer) {
    const auto first = static_cast<std::size_t>(layer * setup_.num_experts);
    for (std::size_t place = 0; place < chunk_.packed_counts.size(); ++place) {
      const auto expert = static_cast<std::size_t>(setup_.placement->expert_at[place]);
      setup_.traffic->tokens_of_expert[first + expert] += chunk_.packed_counts[place];
    }
    rows_.packed(chunk_.packed_counts);
    rows_.plan_sends(move_);
    for (int rank = 0; rank < rows_.num_ranks(); ++rank) {
      const auto told = rows_.told_to(rank);
      std::copy(told.begin(), told.end(), lane_.counters().to(rank).begin());
    }
    lane_.counters().start(move_, chunk_.dispatch_send);
  }

  void count_bytes() {
    std::int64_t sent = 0;
    for (std::size_t peer = 0; peer < move_.send_counts.size(); ++peer) {
      const auto bytes = static_cast<std::int64_t>(move_.send_counts[peer]) *
                         static_cast<std::int64_t>(setup_.row_bytes);
      setup_.traffic->bytes_to[peer] += bytes;
      sent += bytes;
    }
    setup_.traffic->bytes_sent_at_once = std::max(setup_.traffic->bytes_sent_at_once, sent);
  }

  RowsSetup setup_;
  compute::Chunk& chunk_;
  comm::Lane lane_;
  ExpertRows rows_;
  comm::RowMove move_;
  std::vector<ExpertBlock> expert_blocks_;
  std::vector<compute::RowBlock> blocks_;
};

}  // namespace

std::unique_ptr<ChunkMoves> moves_over_mpi(const RowsSetup& setup, compute::Chunk& chunk) {
  return std::make_unique<LaneMoves>(setup, chunk);
}

}  // namespace atl
