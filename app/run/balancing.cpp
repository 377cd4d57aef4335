#include "app/run/balancing.hpp"

#include <fmt/format.h>

#include <vector>

#include "comm/communicator.hpp"

namespace atl {

using nlohmann::json;

namespace {

/// Of experts that change their ranks, beside a pass: host memory for so much.
constexpr std::int64_t expert_bytes_at_once = std::int64_t{256} << 20;

}  // namespace

Balancing::Balancing(const RunOptions& options, const Groups& groups, compute::Backend& backend,
                     Driver& driver, const RunWatch& watch)
    : options_(options),
      groups_(groups),
      driver_(driver),
      watch_(watch),
      shares_(groups, backend, driver, options.balance_when.straggler) {
  if (options.check_experts > 0) {
    std::vector<int> num_experts;
    const Placement& placement = driver.placement();
    const int place = groups.of(Share::exchange).rank();
    for (int layer = 0; layer < std::ssize(placement.kind_of_layer); ++layer) {
      const bool here = placement.kind_of_layer[static_cast<std::size_t>(layer)] >= 0 &&
                        backend.expert_bytes(layer) > 0;
      num_experts.push_back(here ? static_cast<int>(placement.of(layer).experts_of(place).size())
                                 : 0);
    }
    check_.emplace(backend, std::move(num_experts));
  }
  if (options.balance == Balance::replicate) {
    rebalancer_.emplace(options.balance_when, groups, backend, driver, shares_,
                        expert_bytes_at_once, [this](int layer, int local) {
                          if (check_) check_->changed(layer, local);
                        });
  }
}

void Balancing::tell(RankLoad& load) {
  if (rebalancer_) load.moves = rebalancer_->state();
  if (check_ && passes_ % options_.check_experts == 0) check_next(load);
}

void Balancing::check_next(RankLoad& load) {
  const auto found = check_->next();
  if (!found) return;
  const int place = groups_.of(Share::exchange).rank();
  load.broken_layer = found->layer;
  load.broken_expert = driver_.placement()
                           .of(found->layer)
                           .experts_of(place)[static_cast<std::size_t>(found->local)];
}

void Balancing::advance(std::span<const RankLoad> loads, const std::function<void()>& land) {
  ++passes_;
  for (std::size_t rank = 0; rank < loads.size(); ++rank) {
    if (loads[rank].broken_layer < 0) continue;
    leave_out({static_cast<int>(rank), loads[rank].broken_layer, loads[rank].broken_expert}, land);
  }
  if (!rebalancer_) return;
  rebalancer_->advance(loads, land);
  if (shares_.relieve(watch_.loads(), land) && groups_.world().rank() == 0) {
    fmt::print(stderr, "{}\n", watch_.shares_text(shares_.shares()));
  }
}

void Balancing::leave_out(const BrokenExpert& broken, const std::function<void()>& land) {
  const bool root = groups_.world().rank() == 0;
  const std::string what = fmt::format(
      "the weights of expert {} in layer {} on {} are no longer what they were (their checksum has "
      "changed: memory that has gone bad?)",
      broken.expert, broken.layer, watch_.rank_text(broken.rank));
  if (!shares_.leave_out(broken, land)) {
    throw comm::AgreedFailure(
        fmt::format("{}, and no other rank of its network has that expert; start again with "
                    "--resume, without that host",
                    what),
        1, root);
  }
  if (rebalancer_) rebalancer_->stop();
  if (root) {
    fmt::print(stderr,
               "{}: other ranks that have it take its rows from now on; what was computed since "
               "its last check, {} passes ago at most, may be wrong\n",
               what, watch_.loads().passes());
  }
}

void Balancing::before_update() {
  if (rebalancer_) rebalancer_->drop();
}

compute::Part Balancing::part(compute::Part part) const {
  const Placement& placement = driver_.placement();
  const int place = groups_.of(Share::exchange).rank();
  for (std::size_t layer = 0; layer < part.experts.size(); ++layer) {
    if (part.experts[layer].empty()) continue;  // a dense layer, or another stage's
    const auto& experts = placement.of(static_cast<int>(layer)).experts_of(place);
    part.experts[layer].assign(experts.begin(), experts.end());
  }
  return part;
}

void Balancing::weights_changed() {
  if (check_) check_->all_changed();
}

void Balancing::finish() {
  if (rebalancer_) rebalancer_->finish();
}

void Balancing::report_to(json& report) const {
  if (rebalancer_) {
    report["moved"] = rebalancer_->report();
    report["shares_of_slow_ranks"] = watch_.shares_json(shares_.shares());
  }
  if (!check_) return;
  json broken = json::array();
  for (const BrokenExpert& each : shares_.broken()) {
    broken.push_back({{"rank", each.rank}, {"layer", each.layer}, {"expert", each.expert}});
  }
  report["checks_of_experts"] = {
      {"looks", check_->looks()}, {"seconds", check_->seconds()}, {"broken", broken}};
}

}  // namespace atl
