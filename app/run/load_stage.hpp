#pragma once
// A stage's weights, from a model file into the backends of its ranks.

#include "app/model/load.hpp"
#include "app/plan/job_layout.hpp"
#include "app/run/open_model.hpp"
#include "comm/communicator.hpp"
#include "comm/topology.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Where weights go; all of it outlives this.
struct StageBackend {
  const comm::Communicator& world;
  const comm::Topology& topology;  ///< of the world
  const JobLayout& job;
  const compute::Part& part;  ///< that this rank has
  compute::Backend& backend;
};

/// Collective over the job, see load_weights(). Ranks of the same stage have the same weights but
/// for experts, in all networks, and read them together.
LoadedModel load_stage(const StageBackend& to, const OpenModel& model);

}  // namespace atl
