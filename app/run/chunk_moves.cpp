#include "app/run/chunk_moves.hpp"

#include <algorithm>
#include <optional>

#include "app/run/across_exchange.hpp"
#include "app/run/expert_exchange.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

/// Members of a group as ranks.
comm::Awaited as_ranks(comm::Awaited awaited, const std::vector<int>& members) {
  for (auto* peers : {&awaited.from, &awaited.to}) {
    for (int& peer : *peers) peer = members[static_cast<std::size_t>(peer)];
  }
  return awaited;
}

class MovesOverMpi final : public ChunkMoves {
 public:
  MovesOverMpi(const RowsSetup& setup, compute::Chunk& chunk) : setup_(setup), chunk_(chunk) {
    if (setup.flat) flat_.emplace(setup, chunk, Share::stage, /*counts_go_alone=*/false);
    if (!setup.nodes) return;
    across_.emplace(setup, chunk);
    inside_.emplace(setup, chunk, Share::node, /*counts_go_alone=*/true);
  }

  void begin(Route route) override {
    experts_ = route == Route::flat ? &*flat_ : &*inside_;
    route_ = route;
  }

  void post(const Step& step) override {
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

  void poll_with(const Step& step, comm::Poller& poller) override {
    comm::Lane& lane = lane_of(step.kind);
    if (tells(step.kind)) {
      lane.counters().poll_with(poller);
    } else if (goes_across(step.kind) || !experts_->alone()) {
      lane.poll_with(poller);
    }
  }

  bool done(const Step& step) override {
    switch (step.kind) {
      case StepKind::across_counts:
        return across_->told();
      case StepKind::counts:
        return experts_->told();
      case StepKind::across_dispatch:
      case StepKind::across_combine:
        return across_->moved(step.kind);
      default:
        return experts_->moved();
    }
  }

  compute::NodeRows node_rows() const override { return across_->rows().node_rows(); }

  std::span<const compute::RowBlock> blocks(int layer) override { return experts_->blocks(layer); }

  comm::Awaited awaited(const Step& step) const override {
    const bool across = goes_across(step.kind);
    const comm::Lane& lane = across ? across_->lane(step.kind) : experts_->lane();
    return as_ranks(tells(step.kind) ? lane.counters().awaited() : lane.awaited(),
                    across ? across_->members() : experts_->members());
  }

  std::size_t most_requests() const override {
    std::size_t most = flat_ ? flat_->lane().most_requests() : 0;
    if (across_) {
      most = std::max(most, across_->most_requests() + inside_->lane().most_requests());
    }
    return most;
  }

 private:
  static bool tells(StepKind kind) {
    return kind == StepKind::counts || kind == StepKind::across_counts;
  }
  static bool goes_across(StepKind kind) { return info_of(kind).share == Share::rail; }
  comm::Lane& lane_of(StepKind kind) {
    return goes_across(kind) ? across_->lane(kind) : experts_->lane();
  }

  /// What the router chose, for the report.
  void count_routed(int layer) {
    Traffic& traffic = *setup_.traffic;
    const auto& replicas = setup_.placement->of(layer).replicas();
    const auto first = static_cast<std::size_t>(layer * setup_.num_experts);
    const std::size_t first_place = static_cast<std::size_t>(layer) * traffic.most_places;
    for (std::size_t place = 0; place < chunk_.packed_counts.size(); ++place) {
      const std::int32_t rows = chunk_.packed_counts[place];
      traffic.tokens_of_expert[first + static_cast<std::size_t>(replicas[place].expert)] += rows;
      traffic.rows_of_replica[first_place + place] += rows;
      traffic.flat_rows_to[static_cast<std::size_t>(replicas[place].rank)] += rows;
    }
    for (std::size_t node = 0; node < chunk_.node_rows.size(); ++node) {
      traffic.node_rows_to[node] += chunk_.node_rows[node];
      traffic.node_returns_to[node] += chunk_.node_returns[node];
    }
  }

  RowsSetup setup_;
  compute::Chunk& chunk_;
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
