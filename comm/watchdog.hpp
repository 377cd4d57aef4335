#pragma once
// Every wait on other ranks ends: a watchdog thread sees what the thread that owns MPI is doing,
// also where that is stuck inside MPI or HDF5, asks the other ranks' watchdogs who keeps it
// waiting, and ends the job with one message when that has taken too long.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/side_channel.hpp"

namespace atl::comm {

class Communicator;

/// What this process is at, for the watchdog: written by the thread that owns MPI in a few plain
/// stores, cheap enough for the loop over passes. One per process, as there is one such thread.
///
/// Names are string literals or otherwise live for ever.
namespace watched {

/// A stage of the job, such as "set-up", in which no wait may take longer than `allowance_s` (0:
/// any may take for ever). With `work_may_last`, a wait for ranks that answer and are at work of
/// their own never counts: some work, such as converting a model, takes as long as it takes.
void stage(const char* name, double allowance_s, bool work_may_last = false);

/// A pass begins; until end_pass() the stage's allowance is for the time
/// without any progress, be it in arithmetic or in exchanges.
void begin_pass(std::int64_t pass);
void end_pass();
/// Something of the pass was completed.
void progress();
/// What the pass does now; `what` as in "dispatch".
void at(const char* what, int layer, int chunk, Activity activity);

/// True when the watchdog would like to know whom MPI still awaits, once the wait has become long.
bool details_wanted();
void tell_details(const std::string& text);

}  // namespace watched

/// The calling thread waits for other ranks while this lives. Guards nest; the innermost is named.
class Waiting {
 public:
  explicit Waiting(const char* what);
  ~Waiting();
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  const char* outer_what_;
  Activity outer_activity_;
};

/// The thread that watches. Made before MPI is initialised and destroyed after it is finalised, so
/// that both are watched too.
class Watchdog {
 public:
  Watchdog();
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Collective: from now on the ranks' watchdogs can ask one another.
  void connect(const Communicator& world);

  /// This rank has failed alone: prints `message`, unless another rank has ended the job already,
  /// tells the other ranks to end, and ends all by MPI_Abort; by force where that takes too long.
  [[noreturn]] void abort(const Communicator& world, const std::string& message);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::comm
