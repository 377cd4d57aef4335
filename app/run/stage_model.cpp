#include "app/run/stage_model.hpp"

#include <fmt/format.h>

#include <array>
#include <span>

#include "app/run/run.hpp"
#include "comm/watchdog.hpp"
#include "io/staged_copy.hpp"

namespace atl {

std::string staged_model(const comm::Communicator& world, const RunOptions& options) {
  if (options.stage.empty()) return options.model;
  const comm::Communicator node = world.split_shared();
  // A model takes as long as it takes; ranks that wait for their node's copy wait for work.
  comm::watched::stage("copying the model (--stage)", setup_deadlines * options.deadline,
                       /*work_may_last=*/true);
  io::StagedCopy copy;
  world.agree([&] {
    if (node.rank() == 0) copy = io::stage_copy(options.model, options.stage);
  });
  comm::watched::stage("set-up", setup_deadlines * options.deadline);
  const bool first = node.rank() == 0;
  std::array<std::int64_t, 2> nodes = {first ? 1 : 0, first && copy.reused ? 1 : 0};
  world.allreduce(std::span(nodes), comm::Communicator::Reduce::sum);
  double seconds = copy.seconds;
  world.allreduce(std::span(&seconds, 1), comm::Communicator::Reduce::max);
  if (world.rank() == 0) {
    fmt::print(stderr,
               "--stage: {:.3g} GB in {} on {} node{}, {} of them there already; {:.1f} s\n",
               static_cast<double>(copy.bytes) / 1e9, options.stage, nodes[0],
               nodes[0] == 1 ? "" : "s", nodes[1], seconds);
  }
  return node.broadcast(copy.path, 0);
}

}  // namespace atl
