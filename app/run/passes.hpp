#pragma once
// All passes of a run, from the first batch to the last: what happens in each, and in which order.

#include <array>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/plan/pass_choice.hpp"
#include "app/plan/placement.hpp"
#include "app/plan/rank_load.hpp"
#include "app/run/activations.hpp"
#include "app/run/balancing.hpp"
#include "app/run/batcher.hpp"
#include "app/run/driver.hpp"
#include "app/run/energy.hpp"
#include "app/run/gate_balance.hpp"
#include "app/run/groups.hpp"
#include "app/run/guessed_rows.hpp"
#include "app/run/open_model.hpp"
#include "app/run/progress.hpp"
#include "app/run/ranks.hpp"
#include "app/run/routing_record.hpp"
#include "app/run/routing_replay.hpp"
#include "app/run/run_watch.hpp"
#include "app/run/sizes.hpp"
#include "app/run/timeline.hpp"
#include "app/run/weight_updates.hpp"
#include "app/run/workload.hpp"
#include "comm/communicator.hpp"
#include "comm/transports/kind.hpp"
#include "compute/backend.hpp"
#include "io/trace.hpp"

namespace atl {

/// What the passes work with; all of it outlives them.
struct PassesInput {
  const comm::Communicator& world;
  const RunOptions& options;
  const OpenModel& model;
  const Placement& placement;
  const Groups& groups;
  const Ranks& ranks;
  const Sizes& sizes;
  const std::vector<int>& dumped_layers;
  RoutingReplay* replay;   ///< null: the routers choose
  WeightUpdates* updates;  ///< null: the weights stay
  comm::TransportKind transport;
  compute::Backend& backend;
  Workload& work;
};

class Passes {
 public:
  /// Collective.
  explicit Passes(const PassesInput& input);
  /// What operations under way still write to goes with this.
  ~Passes() { in_.backend.settle(); }
  Passes(const Passes&) = delete;
  Passes& operator=(const Passes&) = delete;

  /// Collective: until no rank has anything left to do. Throws AgreedFailure where a signal stopped
  /// them.
  void run();
  /// Collective: the file of activations, where one is written, gets its name.
  void close_dump();
  /// Collective: the same for the routing, where it is recorded. What that took is in the report.
  void close_record();
  /// Of the routing recorded and replayed, for the report: collective, null on other ranks than 0
  /// and where neither is.
  nlohmann::json routing_report() const;

  /// What shared beginnings of prompts saved, for the report: collective; on rank 0.
  nlohmann::json prefix_report() const;
  /// What guessing tokens brought: the same.
  nlohmann::json speculation_report() const;

  /// How balanced the run was, for the report: collective; on rank 0.
  nlohmann::json balance_report() const;

  /// On the steady clock; 0: none was.
  double first_admitted_at() const { return first_admitted_at_; }
  const Timeline& timeline() const { return *timeline_; }
  const PhaseEnergy& energy() const { return energy_; }
  const Driver& driver() const { return *driver_; }
  /// Of the schedules that passes may run.
  std::uint64_t schedule_hash() const;
  /// How passes ran, by size.
  std::vector<PassRecord> ways() const { return choices_.records(); }
  /// Passes that projected attention's output by rows, and by columns, where that was open.
  std::array<std::int64_t, 2> passes_by_output() const { return passes_by_output_; }

  /// Of the trace, where one is wanted: collective, all ranks' events on rank 0.
  std::vector<std::vector<io::TraceEvent>> gather_trace() const;
  /// On rank 0: writes what gather_trace() gave.
  void write_trace(const std::vector<std::vector<io::TraceEvent>>& events) const;

 private:
  bool root() const { return in_.world.rank() == 0; }
  DriverOptions driver_options();
  void share_resumed();
  void open_dump(DriverOptions& driver);
  void open_record(DriverOptions& driver);
  void open_gate(DriverOptions& driver);
  void open_guessed(DriverOptions& driver);
  /// Waits for a pass under way, and takes what came of it.
  void land(int flight);
  void land_all();
  void finish_pass(int flight);
  /// Before a pass: hears the other ranks, and does what is due. False where no rank has anything
  /// to do in it.
  bool agree_on_pass(int flight);
  void hear_loads(const RankLoad& mine);
  static std::size_t index(int flight) { return static_cast<std::size_t>(flight); }
  int first_slot(int flight) const { return driver_->first_slot(flight); }
  PassCost cost_of_pass() const;
  /// What is due about uneven loads.
  void balance();
  /// Other weights, where there are some: true where that took a while.
  bool advance_update();
  /// Waiting requests go to their ranks, where one has room.
  void admit(int flight);
  bool any_to_admit() const;
  std::int64_t most_grants(int flight) const;
  void show_progress(double seconds);
  RunProgress progress_at(double seconds) const;
  void write_status(std::string_view state);
  RankLoad load_of_rank(int flight);
  void stop_if_asked();
  CheckpointSource checkpoint_source();

  const PassesInput in_;
  const bool speaks_;  // for its sequences: others have them too, but say nothing of them
  SharedKv kv_;
  std::optional<ActivationDump> dump_;
  std::optional<RoutingRecord> record_;
  std::optional<GuessedRows> guessed_;
  std::optional<Timeline> timeline_;
  std::shared_ptr<PrefixPages> pages_;
  std::vector<std::unique_ptr<Batcher>> batchers_;  // [flights]
  std::optional<Driver> driver_;
  PassChoices choices_;
  /// A pass that is under way, or the last one of its sequences.
  struct Flight {
    PassWay way;
    compute::OutputCut output = compute::OutputCut::columns;  // by OutputCut::either
    PassForm form() const { return {way.route, output}; }
    bool under_way = false;
    double begin = 0, seconds = 0;
    std::int64_t sequences = 0;  // of all ranks, when they last agreed, and given to it since
  };
  std::vector<Flight> flights_;
  std::array<std::int64_t, 2> passes_by_output_{};  // rows, columns
  double start_ = 0;                                // of the first pass
  double last_agreed_ = 0;             // when the ranks had agreed on it; 0 before the first
  std::vector<RankLoad> loads_;        // [ranks], before this pass
  std::vector<std::int32_t> resumed_;  // requests that this run resumed, in order of admission
  std::string weights_;                // that sequences under way may have had, with commas between
  std::optional<Progress> progress_;
  RunWatch watch_;
  PhaseEnergy energy_;
  std::optional<Balancing> balancing_;
  std::optional<GateBalance> gate_;
  double first_admitted_at_ = 0;
};

}  // namespace atl
