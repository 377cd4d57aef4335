#include "app/run/rebalancer.hpp"

#include <algorithm>
#include <utility>

#include "compute/clock.hpp"

namespace atl {

namespace {

/// A new cost's weight beside that of those before.
constexpr double weight_of_cost = 0.5;

}  // namespace

Rebalancer::Rebalancer(const BalanceOptions& options, const Groups& groups,
                       compute::Backend& backend, Driver& driver, ReplicaShares& shares,
                       std::int64_t bytes_at_once, std::function<void(int, int)> written)
    : options_(options),
      groups_(groups),
      backend_(backend),
      driver_(driver),
      shares_(shares),
      written_(std::move(written)),
      bytes_at_once_(bytes_at_once),
      place_(groups.of(Share::exchange).rank()),
      layers_(layers_of_stage(static_cast<int>(driver.placement().kind_of_layer.size()),
                              groups.job().stage_of(groups.world().rank()),
                              groups.job().division().pp)),
      moves_(groups.of(Share::exchange)) {
  std::int64_t bytes = 0;
  for (std::size_t layer = 0; layer < driver.placement().kind_of_layer.size(); ++layer) {
    bytes = std::max(bytes, backend.expert_bytes(static_cast<int>(layer)));
  }
  groups.world().allreduce(std::span(&bytes, 1), comm::Communicator::Reduce::max);
  costs_.expert_bytes = bytes;
  looked_at_.resize(driver.placement().kind_of_layer.size());
  seen_ = driver.traffic().tokens_of_expert;
  groups.world().allreduce(std::span(seen_), comm::Communicator::Reduce::sum);
}

MoveState Rebalancer::state() {
  MoveState state;
  state.arrived = batch_.empty() || moves_.done() ? 1 : 0;
  state.lost_s = lost_s_;
  return state;
}

void Rebalancer::advance(std::span<const RankLoad> loads, const std::function<void()>& land) {
  for (const RankLoad& load : loads) {
    work_.rows += load.work.rows;
    work_.seconds += load.work.seconds;
  }
  ++passes_;
  if (!batch_.empty()) {
    if (std::any_of(loads.begin(), loads.end(),
                    [](const RankLoad& load) { return load.moves.arrived == 0; })) {
      return;
    }
    land();
    const double landed = now_seconds();
    end_batch();
    // What ranks lost before this is in the loads, what they lose here counts with the next.
    double lost = 0;
    for (const RankLoad& load : loads) lost = std::max(lost, load.moves.lost_s);
    done_.seconds += lost;
    if (batch_bytes_ > 0) {
      const double now = lost / static_cast<double>(batch_bytes_);
      costs_.seconds_of_byte += weight_of_cost * (now - costs_.seconds_of_byte);
    }
    lost_s_ = now_seconds() - landed;
  } else if (!stopped_ && waiting_.empty() && passes_ >= last_look_ + options_.every) {
    look();
  }
  if (batch_.empty() && !waiting_.empty()) {
    const double begin = now_seconds();
    begin_batch();
    lost_s_ += now_seconds() - begin;
  }
}

/// All ranks have the same numbers, and come to the same end.
void Rebalancer::look() {
  ++done_.looks;
  std::vector<std::int64_t> tokens = driver_.traffic().tokens_of_expert;
  groups_.world().allreduce(std::span(tokens), comm::Communicator::Reduce::sum);
  std::vector<std::int64_t> recent(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) recent[i] = tokens[i] - seen_[i];
  std::vector<std::int64_t> passes;
  for (const std::int64_t looked_at : looked_at_) passes.push_back(passes_ - looked_at);
  costs_.seconds_of_row = work_.rows > 0 ? work_.seconds / static_cast<double>(work_.rows) : 0;
  std::vector<LayerChange> changes =
      changes_worth(recent, passes, driver_.placement(), options_, costs_, done_.refused);
  last_look_ = passes_;
  const std::size_t experts = tokens.size() / looked_at_.size();
  for (std::size_t layer = 0; layer < looked_at_.size(); ++layer) {
    if (!enough_rows(std::span(recent).subspan(layer * experts, experts))) continue;
    looked_at_[layer] = passes_;
    std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(layer * experts), experts,
                seen_.begin() + static_cast<std::ptrdiff_t>(layer * experts));
  }
  waiting_.assign(std::make_move_iterator(changes.begin()), std::make_move_iterator(changes.end()));
}

/// Weights are read and go on their way.
void Rebalancer::begin_batch() {
  const int num_ranks = groups_.of(Share::exchange).size();
  batch_bytes_ = 0;
  while (!waiting_.empty()) {
    const std::int64_t bytes =
        busiest_bytes(waiting_.front().moves, num_ranks, costs_.expert_bytes);
    if (!batch_.empty() && batch_bytes_ + bytes > bytes_at_once_) break;
    batch_bytes_ += bytes;
    batch_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  for (const LayerChange& change : batch_) {
    if (!here(change.layer)) continue;
    const auto bytes = static_cast<std::size_t>(backend_.expert_bytes(change.layer));
    const auto& experts = driver_.placement().of(change.layer).experts_of(place_);
    for (const ExpertMove& move : change.moves) {
      if (move.to == place_) {
        Arrival& arrival = arrivals_.emplace_back();
        arrival.layer = change.layer;
        arrival.local = move.local;
        arrival.bytes = compute::AlignedBuffer(bytes);
        moves_.receive({arrival.bytes.as<std::byte>(), bytes}, move.from);
      } else if (move.from == place_) {
        compute::AlignedBuffer& buffer = sent_.emplace_back(bytes);
        const auto local = std::find(experts.begin(), experts.end(), move.expert) - experts.begin();
        const std::span<std::byte> weights(buffer.as<std::byte>(), bytes);
        backend_.read_expert(change.layer, static_cast<int>(local), weights);
        moves_.send(weights, move.to);
      }
    }
  }
}

void Rebalancer::end_batch() {
  for (const Arrival& arrival : arrivals_) {
    backend_.write_expert(arrival.layer, arrival.local,
                          {arrival.bytes.as<std::byte>(),
                           static_cast<std::size_t>(backend_.expert_bytes(arrival.layer))});
    written_(arrival.layer, arrival.local);
  }
  for (LayerChange& change : batch_) {
    done_.moves += std::ssize(change.moves);
    done_.bytes += std::ssize(change.moves) * costs_.expert_bytes;
    done_.rows_saved += change.rows_saved;
    ++done_.changes;
    const int num_experts = driver_.placement().of(change.layer).num_experts();
    driver_.place(change.layer,
                  LayerPlacement(std::move(change.experts_of), num_experts, groups_.layout()));
    if (here(change.layer)) shares_.tell_backend(change.layer);
  }
  batch_.clear();
  arrivals_.clear();
  sent_.clear();
}

void Rebalancer::drop() {
  moves_.finish();
  waiting_.clear();
  batch_.clear();
  arrivals_.clear();
  sent_.clear();
}

nlohmann::json Rebalancer::report() const {
  return {{"looks", done_.looks},
          {"changes_of_layers", done_.changes},
          {"changes_that_would_not_pay", done_.refused},
          {"experts_moved", done_.moves},
          {"bytes_moved", done_.bytes},
          {"seconds", done_.seconds},
          {"rows_of_busiest_rank_saved_per_pass", done_.rows_saved}};
}

}  // namespace atl
