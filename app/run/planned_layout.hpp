#pragma once
// One layout of a planned job: what it takes of memory, how its passes run, and how long all of
// them take. Without MPI.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/config.hpp"
#include "app/model/model_config.hpp"
#include "app/plan/layout_pricer.hpp"
#include "app/plan/routing_source.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/planned_workload.hpp"
#include "compute/backend.hpp"
#include "compute/memory_plan.hpp"

namespace atl {

/// What is planned, but for the layout.
struct PlanInput {
  Machine machine;
  ModelConfig config;
  DType dtype = DType::bfloat16;
  PlannedWorkload work;
  RoutingSource routing;
  RunOptions run;  ///< as given: layout options, sizes of passes
  int ranks = 1;
};

/// Of the rank of a stage that takes most, with a KV cache of one page.
struct StageMemory {
  int stage = 0;
  int rank = 0;
  compute::MemoryPlan plan;
  std::vector<std::pair<std::string, std::int64_t>> weights;  ///< by kind, as on the device
};

struct LayoutMemory {
  std::vector<StageMemory> stages;
  std::int64_t pages = 0;        ///< of KV cache that ranks take; 0: not even one page fits
  std::int64_t most_pages = 0;   ///< that would fit
  bool whole_output = false;     ///< all ranks have all of attention's output projection
  std::string problem;           ///< why it does not fit; empty: it does
  compute::BackendOptions room;  ///< of the first rank

  bool fits() const { return problem.empty(); }
};

/// How passes of a phase run, and what they take.
struct PlannedPhase {
  std::int64_t passes = 0;
  double seconds = 0;
  std::int64_t prompt_tokens = 0, new_tokens = 0, rows = 0;
  PassForm form;
  int chunks = 1;
  PassPrice price;  ///< of a pass in the middle
  PassLoad load;    ///< the same pass
  /// A pass of the job that was simulated, with an estimate of its work: by that, rising, others
  /// lie on lines between them.
  struct Sample {
    std::int64_t pass = 0;
    double work = 0;
    double seconds = 0;
  };
  std::vector<Sample> samples;
  /// Forms and chunks that were tried, with what a pass in the middle took by a coarse simulation.
  struct Tried {
    PassForm form;
    int chunks = 1;
    double seconds = 0;
  };
  std::vector<Tried> tried;
};

struct PlannedLayout {
  Division division;
  LayoutMemory memory;
  std::optional<LayoutPricer> pricer;
  std::array<PlannedPhase, 2> phases;  ///< by Phase
  double seconds = 0;                  ///< the whole job, without reading the model
  double ttft_median_s = 0, ttft_p99_s = 0;
  double tpot_median_s = 0, tpot_p99_s = 0;
  bool flights = false;
  bool bound = false;  ///< it was not simulated: even its arithmetic takes longer than others do
  /// [ranks, ranks]: activations of the whole job, from, to, where all passes were counted; else
  /// empty.
  std::vector<double> bytes;

  const PlannedPhase& of(Phase phase) const { return phases[static_cast<std::size_t>(phase)]; }
  /// All tokens through the layers.
  double tokens_per_s() const;
};

/// How much of a layout is worked out.
struct PlanDetail {
  std::array<int, 2> samples = {3, 5};  ///< passes of each Phase that are simulated
  bool count_bytes = false;             ///< of all passes
  bool some_layers = false;             ///< simulated for all; see LayerSample
  SimulationDetail fine;
  SimulationDetail coarse;  ///< for the choice between forms
};
/// What suits so many ranks.
PlanDetail detail_for(int num_ranks);

/// The name of a layout, as --layout takes it.
std::string layout_name(const Division& division, int num_ranks);

/// Throws Error where model and layout do not go together; what does not fit is said in `memory`.
PlannedLayout plan_layout(const PlanInput& input, const Division& division,
                          const PlanDetail& detail);

}  // namespace atl
