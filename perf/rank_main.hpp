#pragma once
// The main of a program that runs on ranks: MPI, the watchdog, and one message for what goes wrong.

#include <fmt/format.h>

#include <exception>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "comm/watchdog.hpp"

namespace atl::perf {

/// `run(world, argc, argv)` on all ranks; returns main's exit code.
template <class Run>
int rank_main(const char* name, int argc, char** argv, Run run) {
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
