// The commands. The only try/catch: an exception becomes one message and an exit code.

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>

#include "app/config.hpp"
#include "app/diff.hpp"
#include "app/import.hpp"
#include "app/init.hpp"
#include "app/inspect.hpp"
#include "app/join.hpp"
#include "app/model.hpp"
#include "app/run.hpp"
#include "app/stop.hpp"
#include "comm/communicator.hpp"
#include "comm/deadline.hpp"

namespace {

using namespace atl;

void print_error(const char* message) {
  fmt::print(stderr, "atoll: {}\n", message);
  std::fflush(stderr);
}

/// All ranks must have been started alike: another command or value anywhere is refused by name.
void require_equal_lines(const comm::Communicator& world, const CommandLine& line) {
  std::string mine = "\n";
  for (const auto& [name, value] : line.items()) mine += name + "=" + value + "\n";
  const std::string first = world.broadcast(mine, 0);
  world.agree([&] {
    if (mine == first) return;
    for (const auto& [name, value] : line.items()) {
      if (first.find(fmt::format("\n{}={}\n", name, value)) != std::string::npos) continue;
      const bool command = name == "command";
      fail(
          "rank {} was started with {}{} {}, which differs from rank 0's; start all ranks with the "
          "same command",
          world.rank(), command ? "" : "--", name, value);
    }
    fail(
        "rank {} was started with other options than rank 0; start all ranks with the same command",
        world.rank());
  });
}

void execute(const CommandLine& line, const comm::Communicator& world) {
  switch (line.command) {
    case Command::run:
      return run_job(world, line.run);
    case Command::init:
      return world.agree([&] {
        init_model(preset(line.init.preset), line.init.seed, line.init.output, world.rank(),
                   world.size(), world.fortran_handle());
      });
    case Command::import:
      return world.agree([&] {
        if (world.rank() == 0) import_hf(line.import.folder, line.import.output);
      });
    case Command::inspect:
      return world.agree([&] {
        if (world.rank() != 0) return;
        fmt::print("{}", inspect_text(line.inspect.file, !line.inspect.no_verify));
      });
    case Command::diff:
      return world.agree([&] {
        if (world.rank() == 0) diff_activations(line.diff);
      });
    case Command::join:
      return world.agree([&] {
        if (world.rank() == 0) join_parts(line.join);
      });
    case Command::none:
      if (world.rank() == 0) fmt::print("{}", line.text);
      return;
  }
}

/// A failure that all ranks know of ends them all in order; any other ends them by MPI_Abort.
/// `wrong_use` is what this rank found wrong with its command line; ranks may have different ones.
int run_command(const CommandLine& line, const std::optional<UsageError>& wrong_use,
                comm::Watchdog& watchdog) {
  const comm::Communicator world = comm::Communicator::world();
  try {
    watchdog.connect(world);
    world.agree([&] {
      if (wrong_use) throw UsageError(*wrong_use);
    });
    require_equal_lines(world, line);
    execute(line, world);
    return 0;
  } catch (const comm::AgreedFailure& failure) {
    if (failure.reporter()) print_error(failure.what());
    return failure.exit_code();
  } catch (const std::exception& error) {
    if (world.size() > 1) watchdog.abort(world, error.what());
    print_error(error.what());
    return 1;
  }
}

/// The threads of an OpenMP team spin for milliseconds at every barrier, by default. Where ranks
/// and threads outnumber the cores, each spins away the time that another needs: 2 ranks x 2
/// threads on 2 busy cores took more than 30 times as long, 1 rank x 2 threads up to 10 times. The
/// policy is read before main(), hence the restart. A user's own choice stands.
void let_waiting_threads_sleep(const RunOptions& options, char** argv) {
  const int ranks = comm::Environment::announced_local_ranks();
  const int threads = threads_per_rank(options.threads, ranks);
  const auto cores = comm::Environment::cores_of_node();
  if (threads == 1 || ranks * (threads + 1) <= cores)
    return;  // each rank drives on one more thread
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execv("/proc/self/exe", argv);  // returns only when it fails: then the threads just spin
}

}  // namespace

int main(int argc, char** argv) {
  CommandLine line;
  std::optional<UsageError> wrong_use;
  try {
    line = parse_command_line(argc, argv);
  } catch (const UsageError& error) {
    wrong_use = error;
  }
  if (wrong_use && !comm::Environment::launched()) {
    print_error(wrong_use->what());
    return wrong_use->exit_code();
  }
  if (line.command == Command::none && !wrong_use && !comm::Environment::launched()) {
    fmt::print("{}", line.text);
    return 0;
  }
  if (line.command == Command::run) {
    let_waiting_threads_sleep(line.run, argv);
    watch_stop_signals();  // starting MPI may take long; stopped as soon as the job is set up
  }
  comm::Watchdog watchdog;
  if (line.command == Command::run) {
    comm::watched::stage("start", setup_deadlines * line.run.deadline);
  } else {
    comm::watched::stage("start", line.init.deadline, /*work_may_last=*/true);
  }
  try {
    const comm::Environment mpi(&argc, &argv);
    if (line.command == Command::run) watch_stop_signals();  // MPI may have set its own
    return run_command(line, wrong_use, watchdog);
  } catch (const std::exception& error) {
    print_error(error.what());
    return 1;
  }
}
