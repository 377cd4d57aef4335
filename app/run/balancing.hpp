#pragma once
// What is done about experts and ranks that are not as the others while a run goes on, with no
// effect on results: replicas change their ranks, slow ranks get fewer rows, broken replicas none.

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "app/config.hpp"
#include "app/plan/rank_load.hpp"
#include "app/run/driver.hpp"
#include "app/run/expert_check.hpp"
#include "app/run/groups.hpp"
#include "app/run/rebalancer.hpp"
#include "app/run/replica_shares.hpp"
#include "app/run/run_watch.hpp"
#include "compute/backend.hpp"

namespace atl {

class Balancing {
 public:
  /// Collective. All of these outlive it.
  Balancing(const RunOptions& options, const Groups& groups, compute::Backend& backend,
            Driver& driver, const RunWatch& watch);

  /// What this rank says of it to the others. Drives MPI's progress.
  void tell(RankLoad& load);
  /// Collective, as the ranks have agreed on a pass: what is due by now. `land` returns when no
  /// operation is under way. Throws AgreedFailure where an expert is broken that no other rank has.
  void advance(std::span<const RankLoad> loads, const std::function<void()>& land);
  /// Collective, with no operation under way: experts that are on their way stay where they were.
  void before_update();
  /// `part` of this rank, with the experts that it has now.
  compute::Part part(compute::Part part) const;
  /// Other weights have come for all experts.
  void weights_changed();
  /// Collective. Nothing is on its way any more.
  void finish();

  /// Adds to the report.
  void report_to(nlohmann::json& report) const;

 private:
  void check_next(RankLoad& load);
  void leave_out(const BrokenExpert& broken, const std::function<void()>& land);

  const RunOptions& options_;
  const Groups& groups_;
  Driver& driver_;
  const RunWatch& watch_;
  ReplicaShares shares_;
  std::optional<ExpertCheck> check_;
  std::optional<Rebalancer> rebalancer_;
  std::int64_t passes_ = 0;
};

}  // namespace atl
