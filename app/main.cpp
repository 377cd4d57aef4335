// The commands: here an exception becomes one message and an exit code.

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <optional>
#include <system_error>

#include "app/config.hpp"
#include "app/model/described_model.hpp"
#include "app/model/import.hpp"
#include "app/model/import_plan.hpp"
#include "app/model/init.hpp"
#include "app/model/inspect.hpp"
#include "app/model/model_config.hpp"
#include "app/run/check.hpp"
#include "app/run/check_facts.hpp"
#include "app/run/devices.hpp"
#include "app/run/diff.hpp"
#include "app/run/join.hpp"
#include "app/run/place.hpp"
#include "app/run/plan.hpp"
#include "app/run/run.hpp"
#include "app/run/show_layout.hpp"
#include "app/run/stop.hpp"
#include "app/run/tokenize.hpp"
#include "app/version.hpp"
#include "comm/allotment.hpp"
#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "comm/launcher.hpp"
#include "comm/openmp_binding.hpp"
#include "comm/watchdog.hpp"
#include "io/model_file.hpp"

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

ModelConfig config_of(const InitOptions& options) {
  return options.config.empty() ? preset(options.preset) : described_model(options.config);
}

/// What one process does by itself: alone it needs no MPI, under a launcher rank 0 does it.
void execute_alone(const CommandLine& line) {
  switch (line.command) {
    case Command::init:
      return init_model(config_of(line.init), line.init.seed, line.init.output, 0, 1,
                        io::single_process);
    case Command::import:
      return import_hf(line.import.folder, line.import.output, warn_of_import, line.import.weights);
    case Command::inspect:
      return fmt::print("{}", inspect_text(line.inspect.file, !line.inspect.no_verify));
    case Command::diff:
      return diff_activations(line.diff);
    case Command::join:
      return join_parts(line.join);
    case Command::tokenize:
      return tokenize(line.tokenize);
    case Command::layout:
      return fmt::print("{}", layout_text(line.layout));
    case Command::place:
      return fmt::print("{}", place_experts(line.place));
    case Command::plan:
      return fmt::print("{}", plan_job(line.plan));
    case Command::none:
      return fmt::print("{}", line.version ? version_text() + "\n" : line.text);
    case Command::run:
    case Command::check:
      break;
  }
}

/// Every command but these works without MPI when the process is alone.
bool needs_mpi(Command command) {
  return command == Command::run || command == Command::check;
}

/// Each rank reads and writes some of the tensors.
void import_together(const comm::Communicator& world, const ImportOptions& options) {
  const io::Warn first = [&](const std::string& text) {
    if (world.rank() == 0) warn_of_import(text);
  };
  std::optional<ImportPlan> plan;
  world.agree([&] { plan.emplace(plan_import(options.folder, options.weights, first)); });
  world.agree([&] {
    write_import(*plan, options.output, {world.rank(), world.size(), world.fortran_handle()},
                 warn_of_import);
  });
}

void execute(const CommandLine& line, const comm::Communicator& world) {
  if (line.command == Command::run) return run_job(world, line.run);
  if (line.command == Command::check) return check_machine(world, line.check);
  world.agree([&] {
    if (line.command == Command::init) {
      init_model(config_of(line.init), line.init.seed, line.init.output, world.rank(), world.size(),
                 world.fortran_handle());
    } else if (line.command != Command::import && world.rank() == 0) {
      execute_alone(line);
    }
  });
  if (line.command == Command::import) import_together(world, line.import);
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
    if (needs_mpi(line.command)) comm::launcher::require_joined(world.size());
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

int run_alone(const CommandLine& line, const std::optional<UsageError>& wrong_use) {
  const comm::Failure failure = comm::failure_of([&] {
    if (wrong_use) throw UsageError(*wrong_use);
    execute_alone(line);
  });
  if (failure.exit_code != 0) print_error(failure.message.c_str());
  return failure.exit_code;
}

/// The threads of an OpenMP team spin for milliseconds at every barrier, by default. Where ranks
/// and threads outnumber the cores, each spins away the time that another needs: 2 ranks x 2
/// threads on 2 busy cores took more than 30 times as long, 1 rank x 2 threads up to 10 times. Some
/// tens of microseconds cost little there, and spare most barriers of a decode pass two calls of
/// the kernel. The number is read before main(), hence the restart. A user's own choice stands.
void let_waiting_threads_sleep(const RunOptions& options, char** argv) {
  const comm::Share share = comm::share_before_mpi(comm::launcher::announced_local_ranks());
  const int threads = options.threads > 0 ? options.threads : share.threads();
  if (threads == 1 || threads + 1 <= share.cores) return;  // each rank drives on one more thread
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "2000", 1);
  comm::restore_openmp_bindings();  // for the report
  // By its path, whose last part is the name that a process is known by; the link also leads to a
  // program that has been removed meanwhile. Returns only when it fails: then the threads just
  // spin.
  std::error_code ignored;
  execv(std::filesystem::read_symlink("/proc/self/exe", ignored).c_str(), argv);
  execv("/proc/self/exe", argv);
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
  if (comm::launcher::alone() && (wrong_use || !needs_mpi(line.command))) {
    return run_alone(line, wrong_use);
  }
  if (line.command == Command::run) {
    let_waiting_threads_sleep(line.run, argv);
    watch_stop_signals();  // starting MPI may take long; stopped as soon as the job is set up
  }
  if (line.command == Command::check) warn_before_mpi();
  if (line.command == Command::run && !wrong_use) choose_device_early(line.run.backend);
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
