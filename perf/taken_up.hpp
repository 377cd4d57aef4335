#pragma once
// Benchmarks serve requests that every rank has: each takes up its own of them.

#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "app/run/batcher.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"
#include "comm/communicator.hpp"

namespace atl::perf {

/// Room for all of these.
inline SequenceRoom room_of(const RequestList& requests, const BatchOptions& options) {
  return room_for(needs_of(requests, true, std::numeric_limits<int>::max(), 1, options), options);
}

/// Collective: all ranks' `loads`, with what each takes up of its copy of the queue.
inline void take_up(const comm::Communicator& world, RequestQueue& queue, Batcher& batcher,
                    std::vector<RankLoad>& loads) {
  loads.resize(static_cast<std::size_t>(world.size()));
  world.allgather_into(batcher.load(), std::span(loads));
  for (RequestQueue::Grant& grant : queue.grant(loads)) {
    if (grant.rank == world.rank()) batcher.take_up(std::move(grant.admitted));
  }
}

}  // namespace atl::perf
