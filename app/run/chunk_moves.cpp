#include "app/run/chunk_moves.hpp"

#include <algorithm>
#include <optional>

#include "app/run/across_exchange.hpp"
#include "app/run/expert_exchange.hpp"
#include "app/run/holder_exchange.hpp"
#include "app/run/owner_exchange.hpp"
#include "app/run/pipe_exchange.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

class MovesOverMpi final : public ChunkMoves {
 public:
  MovesOverMpi(const RowsSetup& setup, compute::Chunk& chunk) : setup_(setup), chunk_(chunk) {
    const auto several = [&](Share share) { return setup.groups->members(share).size() > 1; };
    if (several(Share::owner)) owner_.emplace(setup, chunk);
    if (several(Share::pipe)) pipe_.emplace(setup, chunk);
    if (several(Share::holder)) holder_.emplace(setup, chunk);
    if (setup.flat) flat_.emplace(setup, chunk, Share::exchange, /*counts_go_alone=*/false);
    if (!setup.nodes) return;
    across_.emplace(setup, chunk);
    inside_.emplace(setup, chunk, Share::node, /*counts_go_alone=*/true);
  }

  void begin(Route route) override {
    experts_ = route == Route::flat ? &*flat_ : &*inside_;
    route_ = route;
  }

  void post(const Step& step) override {
    switch (info_of(step.kind).share) {
      case Share::owner:
        return owner_->post(step.kind);
      case Share::pipe:
        return pipe_->post(step.kind);
      case Share::holder:
        return step.kind == StepKind::held_counts ? holder_->tell(experts_->blocks(step.layer))
                                                  : holder_->post(step.kind);
      default:
        return post_of_experts(step);
    }
  }

  void poll_with(const Step& step, comm::Poller& poller) override {
    comm::Lane& lane = const_cast<comm::Lane&>(lane_of(step.kind));
    if (tells(step.kind)) {
      lane.counters().poll_with(poller);
    } else if (!inside(step.kind) || !experts_->alone()) {
      lane.poll_with(poller);
    }
  }

  bool done(const Step& step) override {
    switch (step.kind) {
      case StepKind::across_counts:
        return across_->told();
      case StepKind::counts:
        return experts_->told();
      case StepKind::held_counts:
        return holder_->told();
      default:
        return inside(step.kind) ? experts_->moved() : lane_of(step.kind).done();
    }
  }

  compute::NodeRows node_rows() const override { return across_->rows().node_rows(); }

  std::span<const compute::RowBlock> blocks(int layer) override { return experts_->blocks(layer); }

  std::span<const compute::RowBlock> same_blocks() const override {
    return experts_->same_blocks();
  }
  std::span<const compute::RowBlock> shared_blocks() const override { return holder_->blocks(); }

  comm::Awaited awaited(const Step& step) const override {
    const comm::Lane& lane = lane_of(step.kind);
    comm::Awaited awaited = tells(step.kind) ? lane.counters().awaited() : lane.awaited();
    awaited.rename(ranks_of(step.kind));
    return awaited;
  }

  void placed(int layer) override {
    if (flat_) flat_->placed(layer);
    if (inside_) inside_->placed(layer);
    if (across_) across_->placed(layer);
  }

  std::size_t most_requests() const override {
    std::size_t most = flat_ ? flat_->lane().most_requests() : 0;
    if (across_) {
      most = std::max(most, across_->most_requests() + inside_->lane().most_requests());
    }
    if (owner_) most = std::max(most, owner_->most_requests());
    if (holder_) most += holder_->most_requests();  // its counts go while rows are on their way
    return most + (pipe_ ? pipe_->most_requests() : 0);
  }

 private:
  static bool tells(StepKind kind) {
    return kind == StepKind::counts || kind == StepKind::across_counts ||
           kind == StepKind::held_counts;
  }
  /// Rows of experts in one group, by this route or inside a node by the other.
  static bool inside(StepKind kind) { return info_of(kind).share == Share::node; }

  const comm::Lane& lane_of(StepKind kind) const {
    switch (info_of(kind).share) {
      case Share::owner:
        return owner_->lane(kind);
      case Share::pipe:
        return pipe_->lane(kind);
      case Share::holder:
        return holder_->lane(kind);
      case Share::rail:
        return across_->lane(kind);
      default:
        return experts_->lane();
    }
  }

  const std::vector<int>& ranks_of(StepKind kind) const {
    switch (info_of(kind).share) {
      case Share::owner:
        return owner_->world_ranks();
      case Share::pipe:
        return pipe_->world_ranks();
      case Share::holder:
        return holder_->world_ranks();
      case Share::rail:
        return across_->world_ranks();
      default:
        return experts_->world_ranks();
    }
  }

  void post_of_experts(const Step& step) {
    switch (step.kind) {
      case StepKind::across_counts:
        count_routed(step.layer);
        return across_->tell(step.layer);
      case StepKind::across_dispatch:
        return across_->dispatch();
      case StepKind::across_combine:
        return across_->combine();
      case StepKind::counts:
        if (route_ == Route::nodes) {
          return experts_->tell(step.layer, across_->rows().node_counts());
        }
        count_routed(step.layer);
        return experts_->tell(step.layer, chunk_.packed_counts);
      case StepKind::dispatch:
        return experts_->dispatch();
      case StepKind::combine:
        return experts_->combine();
      default:
        fail("internal: {} is no exchange", step.name());
    }
  }

  /// What the router chose, for the report.
  void count_routed(int layer) {
    Traffic& traffic = *setup_.traffic;
    const Groups& groups = *setup_.groups;
    const auto& replicas = setup_.placement->of(layer).replicas();
    const auto first = static_cast<std::size_t>(layer * setup_.shape->num_experts);
    const std::size_t first_place = static_cast<std::size_t>(layer) * traffic.most_places;
    const std::vector<int>& ranks = exchange_ranks_;
    for (std::size_t place = 0; place < chunk_.packed_counts.size(); ++place) {
      const std::int32_t rows = chunk_.packed_counts[place];
      traffic.tokens_of_expert[first + static_cast<std::size_t>(replicas[place].expert)] += rows;
      traffic.rows_of_replica[first_place + place] += rows;
      const int rank = ranks[static_cast<std::size_t>(replicas[place].rank)];
      traffic.flat_rows_to[static_cast<std::size_t>(rank)] += rows;
    }
    for (std::size_t node = 0; node < chunk_.node_rows.size(); ++node) {
      const int first_rank = groups.layout().of(Share::node).members[node].front();
      const auto of_job = static_cast<std::size_t>(
          groups.job().node_of(ranks[static_cast<std::size_t>(first_rank)]));
      traffic.node_rows_to[of_job] += chunk_.node_rows[node];
      traffic.node_returns_to[of_job] += chunk_.node_returns[node];
    }
  }

  RowsSetup setup_;
  compute::Chunk& chunk_;
  std::vector<int> exchange_ranks_ = setup_.groups->world_ranks(Share::exchange);
  std::optional<OwnerExchange> owner_;
  std::optional<PipeExchange> pipe_;
  std::optional<HolderExchange> holder_;
  std::optional<ExpertExchange> flat_, inside_;
  std::optional<AcrossExchange> across_;
  ExpertExchange* experts_ = nullptr;  // of the route under way
  Route route_ = Route::flat;
};

}  // namespace

std::unique_ptr<ChunkMoves> moves_over_mpi(const RowsSetup& setup, compute::Chunk& chunk) {
  return std::make_unique<MovesOverMpi>(setup, chunk);
}

}  // namespace atl
