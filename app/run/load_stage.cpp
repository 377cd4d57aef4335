#include "app/run/load_stage.hpp"

namespace atl {

LoadedModel load_stage(const StageBackend& to, const OpenModel& model) {
  const auto load_over = [&](const comm::Communicator& comm, const comm::Topology& topology) {
    return load_weights(comm, topology, *model.file, model.config, to.part, model.dtype,
                        to.backend);
  };
  if (to.job.division().pp == 1) return load_over(to.world, to.topology);
  const comm::Communicator stage = to.world.split(to.job.stage_of(to.world.rank()));
  const comm::Topology topology = comm::discover_topology(stage);
  LoadedModel loaded;
  to.world.agree([&] { loaded = load_over(stage, topology); });
  return loaded;
}

}  // namespace atl
