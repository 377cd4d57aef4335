#include "app/run/back_off.hpp"

#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace atl {

namespace {

/// An idle rank polls so many times before it sleeps. On a core of its own it just polls; on a
/// shared one it yields, a few times only: ranks that take turns to find nothing keep the one that
/// computes waiting, and Linux makes who yields wait a whole time slice of whoever else wants the
/// core.
constexpr int polls_on_shared_cores = 50;
constexpr int polls_on_own_cores = 1000;
constexpr int shortest_sleep_us = 20;
constexpr int longest_sleep_us = 200;
/// While arithmetic runs, polling only keeps messages moving; every wake-up takes time from it.
constexpr int shortest_busy_sleep_us = 50;
constexpr int longest_busy_sleep_us = 500;
/// A device's steps are short, and what follows one waits for this thread.
constexpr int device_sleep_us = 20;

void sleep_us(int duration) {
  std::this_thread::sleep_for(std::chrono::microseconds(duration));
}

}  // namespace

BackOff::BackOff(compute::Backend& backend, bool shares_cores)
    : backend_(backend), shares_cores_(shares_cores) {
  // Linux adds 50 us to every sleep unless told otherwise, more than these sleeps.
  constexpr unsigned long timer_slack_ns = 1000;
  prctl(PR_SET_TIMERSLACK, timer_slack_ns, 0, 0, 0);
}

void BackOff::idle(const compute::Event* computing, bool messages) {
  ++idle_polls_;
  if (computing != nullptr && !backend_.in_order()) {
    // Whichever of several streams is first, it is seen soon; a rank with a core to itself spins.
    if (shares_cores_) {
      backend_.wait(*computing, device_sleep_us);
    } else if (idle_polls_ > polls_on_own_cores) {
      sleep_us(device_sleep_us);
    }
  } else if (computing != nullptr && !messages) {
    backend_.finish(*computing);  // no message can arrive meanwhile
  } else if (computing != nullptr) {
    backend_.wait(*computing,
                  std::clamp(idle_polls_ * 10, shortest_busy_sleep_us, longest_busy_sleep_us));
  } else if (idle_polls_ < (shares_cores_ ? polls_on_shared_cores : polls_on_own_cores)) {
    if (shares_cores_) sched_yield();
  } else {
    sleep_us(std::clamp(idle_polls_ / 8, shortest_sleep_us, longest_sleep_us));
  }
}

}  // namespace atl
