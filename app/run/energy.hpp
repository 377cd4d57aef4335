#pragma once
// Energy that a node takes while passes run, from whatever counters a user may read there.

#include <array>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/plan/phase.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Counters of this node that only rise, in joules since they were opened.
class EnergyCounters {
 public:
  /// `root` is put before /sys. HPE Cray's counter of the whole node comes first; else processors
  /// by RAPL and GPUs by NVML are added up.
  explicit EnergyCounters(const std::string& root = "");
  ~EnergyCounters();
  EnergyCounters(const EnergyCounters&) = delete;
  EnergyCounters& operator=(const EnergyCounters&) = delete;

  /// "RAPL (package-0, package-1)"; empty: none can be read.
  const std::string& source() const { return source_; }
  /// Why not, where none can be read.
  const std::string& why_not() const { return why_not_; }
  /// Joules since construction.
  double joules();

 private:
  struct Counter;
  void open_rapl(const std::string& root);
  void open_node(const std::string& root);
  void open_gpus();

  std::vector<std::unique_ptr<Counter>> counters_;
  std::string source_, why_not_;
};

/// The joules of each phase on a node; one rank of the node reads the counters, others do nothing.
class PhaseEnergy {
 public:
  explicit PhaseEnergy(bool reads);
  /// A pass of this phase begins: what was taken since the last call was the phase's before.
  void enter(Phase phase);
  /// The passes have ended.
  void leave();

  /// Collective, for the report; on rank 0. `tokens` of both phases: of all ranks.
  nlohmann::json report(const comm::Communicator& world,
                        const std::array<std::int64_t, 2>& tokens) const;

 private:
  void take();
  std::unique_ptr<EnergyCounters> counters_;  // null: another rank of the node reads
  std::array<double, 2> joules_{};            // [phases]
  double last_ = 0;
  int phase_ = -1;
};

}  // namespace atl
