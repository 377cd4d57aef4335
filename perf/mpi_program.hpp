#pragma once
// What the programs here have in common that run on all ranks of a job.

#include <fmt/format.h>

#include <cstdio>
#include <exception>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "comm/watchdog.hpp"

namespace atl::perf {

/// Calls run(world, argc, argv) under a watchdog. Returns the exit code: its own, or that of its
/// error, which is said on stderr under the program's `name`; one that not all ranks know of ends
/// them all.
template <class Run>
int mpi_program(const char* name, int argc, char** argv, const Run& run) {
  comm::Watchdog watchdog;
  const comm::Environment environment(&argc, &argv);
  const comm::Communicator world = comm::Communicator::world();
  try {
    watchdog.connect(world);
    return run(world, argc, argv);
  } catch (const comm::AgreedFailure& failure) {
    if (failure.reporter()) fmt::print(stderr, "{}: {}\n", name, failure.what());
    return failure.exit_code();
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", name, error.what());
    if (world.size() > 1) watchdog.abort(world, error.what());
    return 1;
  }
}

}  // namespace atl::perf
