// ranks: 1 2 5
//
// The loop over passes: nothing is allocated once it has warmed up.
#include <gtest/gtest.h>

#include "app/model/init.hpp"
#include "app/model/load.hpp"
#include "app/model/model_config.hpp"
#include "app/run/driver.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"
#include "compute/across_rows.hpp"
#include "tests/count_allocations.hpp"
#include "tests/mpi_main.hpp"

namespace atl {
namespace {

/// Random weights straight into the backend, as load_weights would bring them from a file.
void load_random(const ModelConfig& config, const compute::Part& part, compute::Backend& backend) {
  compute::for_each_weight(
      config.shape, part, [&](const compute::WeightInfo& info, int, int local_expert) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(info.num_elements()) *
                                     size_of(config.dtype));
        fill_random(1, fmt::format("{} {} {}", name_of(info.id), info.layer, local_expert), 0, 0.1,
                    config.dtype, bytes);
        backend.load_weight(info.id, info.layer, local_expert,
                            {bytes.data(), config.dtype, info.rows, info.cols});
      });
  backend.finish_loading();
}

ListedRequests requests_for(int num_ranks) {
  std::vector<io::Request> requests(static_cast<std::size_t>(8 * num_ranks));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].tokens.assign(20 + i % 7, static_cast<std::int32_t>(i % 250));
    requests[i].max_tokens = 64;
    requests[i].temperature = i % 2 == 0 ? 0.0 : 0.8;
    requests[i].top_p = 0.9;
  }
  return ListedRequests(std::move(requests));
}

long allocations_in_decode(bool overlap, comm::TransportKind transport, Route route) {
  const comm::Communicator world = comm::Communicator::world();
  ModelConfig config = preset("moe-16l-tiny");
  config.shape.num_layers = 3;
  config.shape.layer_is_dense = {true, false, false};
  config.shape.intermediate = config.shape.moe_intermediate;
  std::vector<int> node_of;
  for (int rank = 0; rank < world.size(); ++rank) node_of.push_back(rank / 2);
  const Layout layout = make_layout(node_of);
  const Groups groups(world, JobLayout({}, node_of), /*nodes=*/true);
  const Placement placement = even_placement(config.shape, layout);
  ListedRequests requests = requests_for(world.size());
  BatchOptions batch;
  batch.max_sequences = 8;
  batch.max_pass_tokens = 256;
  batch.min_chunk_tokens = 2;
  batch.max_chunks = 3;
  batch.num_pages = 32;
  compute::BackendOptions options;
  options.shape = config.shape;
  options.dtype = config.dtype;
  options.part = placement.part_of(world.rank(), config.shape, layout);
  options.num_pages = batch.num_pages;
  options.max_chunk_tokens = 128;
  options.across = true;
  const auto backend = compute::make_cpu_backend(options);
  load_random(config, options.part, *backend);
  Timeline timeline(world.size(), 0, 100000);
  DriverOptions driver_options;
  driver_options.num_chunks = 3;
  driver_options.overlap = overlap;
  driver_options.transport = transport;
  driver_options.row_bytes = static_cast<std::size_t>(config.shape.hidden) * 2;
  driver_options.across_row_bytes = static_cast<std::size_t>(
      compute::across_row(config.shape.hidden, config.dtype, config.shape.top_k).bytes);
  driver_options.nodes = true;
  driver_options.max_head_rows = 8;
  driver_options.max_chunk_tokens = 128;
  Driver driver(*backend, groups, config.shape, placement, driver_options, timeline);
  const auto needs = needs_of(requests, true, config.shape.max_positions, world.size(), batch);
  Batcher batcher(batch, room_for(needs, batch));
  RequestQueue queue(requests, {}, batch, "");
  std::vector<RankLoad> loads(static_cast<std::size_t>(world.size()));
  counted::allocations = 0;
  for (int pass = 0; pass < 50; ++pass) {
    counted::counting = pass >= 10;  // prompts and the first tokens warm up
    world.allgather_into(batcher.load(), std::span(loads));
    for (RequestQueue::Grant& grant : queue.grant(loads)) {
      if (grant.rank == world.rank()) batcher.take_up(std::move(grant.admitted));
    }
    if (!batcher.next_pass(loads)) break;
    timeline.begin_pass(Phase::decode, driver.schedule(batcher.num_chunks(), {route}), 0, 0);
    driver.run_pass(batcher, {route});
    timeline.end_pass(batcher.finish_pass(0));
    counted::counting = false;
  }
  return counted::allocations;
}

TEST(Driver, PassesDoNotAllocate) {
  for (const bool overlap : {true, false}) {
    for (const auto transport : {comm::TransportKind::ialltoallv, comm::TransportKind::pairwise}) {
      for (const Route route : {Route::flat, Route::nodes}) {
        EXPECT_EQ(allocations_in_decode(overlap, transport, route), 0)
            << name_of(transport) << (overlap ? " overlapped " : " serial ") << name_of(route);
      }
    }
  }
}

}  // namespace
}  // namespace atl
