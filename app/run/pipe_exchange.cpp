#include "app/run/pipe_exchange.hpp"

#include "app/run/expert_exchange.hpp"

namespace atl {

PipeExchange::PipeExchange(const RowsSetup& setup, compute::Chunk& chunk)
    : setup_(setup),
      chunk_(chunk),
      world_ranks_(setup.groups->world_ranks(Share::pipe)),
      stage_(setup.groups->of(Share::pipe).rank()),
      row_bytes_(static_cast<std::size_t>(setup.shape->hidden) * sizeof(float)),
      move_(static_cast<int>(world_ranks_.size())) {
  comm::LaneOptions options;
  // Only neighbours take part, each when its own turn has come: nothing collective.
  options.transport = setup.device == nullptr || setup.transport == comm::TransportKind::pairwise
                          ? comm::TransportKind::pairwise
                          : comm::TransportKind::pairwise_staged;
  options.row_bytes = row_bytes_;
  options.device = setup.device;
  options.peers = comm::Peers{};
  for (auto& lane : lanes_) {
    lane = std::make_unique<comm::Lane>(setup.groups->of(Share::pipe), options);
  }
}

void PipeExchange::post(StepKind kind) {
  const int rows = static_cast<int>(chunk_.tokens.size());
  move_ = comm::RowMove(static_cast<int>(world_ranks_.size()));
  if (kind == StepKind::receive) {
    move_.recv_counts[static_cast<std::size_t>(stage_ - 1)] = rows;
  } else {
    move_.send_counts[static_cast<std::size_t>(stage_ + 1)] = rows;
  }
  count_sent(*setup_.traffic, Share::pipe, move_, world_ranks_, row_bytes_);
  lane(kind).start(move_, chunk_.x, chunk_.x);
}

}  // namespace atl
