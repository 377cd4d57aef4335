#include "app/run/agreed_schedules.hpp"

#include <algorithm>

#include "compute/error.hpp"

namespace atl {

std::vector<Schedule> agreed_schedules(const comm::Communicator& world, const ModelShape& shape,
                                       int max_chunks, bool overlap, const StageSteps& stage) {
  std::vector<Schedule> schedules;
  std::uint64_t hash = 0;
  for (int n = 1; n <= max_chunks; ++n) {
    schedules.push_back(overlap ? overlapped_schedule(shape, n, stage)
                                : serial_schedule(shape, n, stage));
    verify(schedules.back(), shape);
    hash = hash * 31 + schedules.back().hash();
  }
  const auto hashes = world.allgather(hash);
  const auto other =
      std::find_if(hashes.begin(), hashes.end(), [&](std::uint64_t h) { return h != hashes[0]; });
  require(
      other == hashes.end(),
      "rank {} built another schedule than rank 0 (their options or programs differ); start all "
      "ranks with the same command",
      other - hashes.begin());
  return schedules;
}

}  // namespace atl
