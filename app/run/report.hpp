#pragma once
// The report of a run: gathered from all ranks, written as JSON, and its short table for the eye.

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/mode.hpp"
#include "app/model/model_config.hpp"
#include "app/plan/job_layout.hpp"
#include "app/plan/placement.hpp"
#include "app/run/checkpoints.hpp"
#include "app/run/cluster.hpp"
#include "app/run/driver.hpp"
#include "app/run/energy.hpp"
#include "app/run/request_summary.hpp"
#include "app/run/timeline.hpp"
#include "comm/allotment.hpp"
#include "comm/topology.hpp"
#include "comm/transports/choice.hpp"

namespace atl {

/// What the report says that does not depend on time.
struct RunFacts {
  const RunOptions* options = nullptr;
  const ModelConfig* config = nullptr;
  const Placement* placement = nullptr;
  const JobLayout* job = nullptr;
  const comm::Topology* topology = nullptr;
  const comm::Allotment* given = nullptr;
  const Cluster* cluster = nullptr;  ///< null: the links' speed is not known
  std::string backend;
  std::string isa;  ///< empty: not the CPU's
  const comm::TransportChoice* transport = nullptr;
  std::uint64_t model_identity = 0;
  std::uint64_t schedule_hash = 0;
  int most_chunks = 1;
  std::vector<PassRecord> ways;
  compute::OutputCut output = compute::OutputCut::columns;  ///< where attention is shared
  std::array<std::int64_t, 2> passes_by_output{};           ///< see Passes
  int threads = 1;                                          ///< of this rank
  DType dtype = DType::bfloat16;
  Mode mode = Mode::generate;
};

/// This rank's part of the measurements.
struct RankMeasurements {
  const Timeline* timeline = nullptr;
  const Traffic* traffic = nullptr;
  compute::Backend::Memory memory;
  std::int64_t bytes_read = 0;
  double load_seconds = 0;
  CheckpointCost checkpoints;
  const PhaseEnergy* energy = nullptr;
};

/// Collective. The whole report on rank 0, null elsewhere.
nlohmann::json gather_report(const comm::Communicator& world, const RunFacts& facts,
                             const RankMeasurements& mine, const RequestSummary& requests);

/// One line that says in how many requests numbers were not finite and what to do; "" for none.
/// `stored_non_finite`: weights are not finite on file, so that no type of activations helps.
std::string failures_line(const RequestSummary& requests, DType dtype, bool stored_non_finite);

/// A few lines for the end of a run, from the report.
std::string summary_table(const nlohmann::json& report);

}  // namespace atl
