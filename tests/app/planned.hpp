#pragma once
// A small planned job on a made machine, for the tests of the planner.

#include <memory>

#include "app/model/model_config.hpp"
#include "app/plan/job_walk.hpp"
#include "app/plan/layout_pricer.hpp"
#include "app/plan/plan_graph.hpp"
#include "compute/error.hpp"

namespace atl {

/// Four nodes of four ranks; each has a port of its own inside its node and between nodes.
inline Machine made_machine() {
  Machine machine;
  machine.name = "a made machine";
  machine.num_nodes = 4;
  machine.ranks_of_node = 4;
  machine.peak_flops_per_s = machine.flops_per_s = 1e10;
  machine.peak_bytes_per_s = machine.bytes_per_s = machine.row_bytes_per_s = 1e10;
  machine.memory_bytes = 1e9;
  machine.inside = {1e9, 0, 0, 2e-6};
  machine.between = {1e8, 0, 0, 1e-5};
  machine.launch_s = 1e-6;
  machine.poll_s = 1e-6;
  machine.message_s = 2e-7;
  machine.agree_s = 1e-5;
  return machine;
}

/// All ranks of a machine, divided somehow, with four sequences for each that are in their prompts.
class Planned {
 public:
  explicit Planned(const Division& division, bool overlap = true, double sigma = 0.5,
                   const Machine& machine = made_machine(), int layers = 4, int experts = 8)
      : machine_(machine),
        shape_(model(layers, experts)),
        routing_(RoutingLaw{sigma, 1}, shape_.num_layers, shape_.num_experts, shape_.top_k) {
    LayoutSetup setup;
    setup.machine = &machine_;
    setup.shape = &shape_;
    setup.job = JobLayout(division, machine_.nodes_of(machine_.num_ranks()));
    setup.placement = even_placement(shape_, setup.job.exchange_of(0));
    setup.routing = &routing_;
    setup.overlap = overlap;
    setup.num_flights = division.pp > 1 ? 2 * division.pp : 1;
    pricer_ = std::make_unique<LayoutPricer>(setup);
  }

  /// The first passes of the job.
  std::vector<PassLoad> loads(int count, int chunks, std::int64_t prompt = 60) const {
    const std::vector<JobRequest> requests(4 * static_cast<std::size_t>(machine_.num_ranks()),
                                           {prompt, 4});
    JobLimits limits;
    limits.max_pass_tokens = 256;
    limits.min_chunk_tokens = 1;
    limits.max_chunks = 8;
    limits.num_owners = pricer_->groups().job().num_owners();
    limits.num_flights = pricer_->setup().num_flights;
    limits.num_pages = 4000;
    JobWalk walk(limits, requests);
    std::vector<PassLoad> loads(static_cast<std::size_t>(count));
    PassCount ignored;
    for (PassLoad& load : loads) {
      if (!walk.next(chunks, ignored, &load)) throw Error("the job has fewer passes");
    }
    return loads;
  }

  PlanGraph graph(Route route, int chunks) const {
    compute::BackendOptions room;
    room.max_chunk_tokens = 512;
    room.most_receive_rows = 1 << 20;
    return graph_of(*pricer_, loads(1, chunks).front(), {route, compute::OutputCut::columns}, room);
  }

  const LayoutPricer& pricer() const { return *pricer_; }
  const ModelShape& shape() const { return shape_; }
  const Machine& machine() const { return machine_; }

 private:
  static ModelShape model(int layers, int experts) {
    ModelShape shape = preset("moe-16l-tiny").shape;
    shape.num_layers = layers;
    shape.layer_is_dense.assign(static_cast<std::size_t>(layers), false);
    shape.layer_is_dense.front() = true;
    shape.num_experts = experts;
    shape.hidden = 512;
    shape.shared_intermediate = 64;
    return shape;
  }

  Machine machine_;
  ModelShape shape_;
  RoutingSource routing_;
  std::unique_ptr<LayoutPricer> pricer_;
};

}  // namespace atl
