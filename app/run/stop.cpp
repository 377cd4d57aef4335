#include "app/run/stop.hpp"

#include <fmt/format.h>
#include <time.h>

#include <atomic>
#include <csignal>

namespace atl {

namespace {

constexpr int watched[] = {SIGTERM, SIGINT, SIGUSR1};
constexpr long repeat_ns = 1000000000;

std::atomic<int> first_signal{0};
std::atomic<long> first_time_ns{0};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<long>::is_always_lock_free,
              "the handler may use nothing else");

void note(int signal) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const long now_ns = now.tv_sec * 1000000000 + now.tv_nsec;
  long never = 0;  // the time first: whoever sees the signal sees when it came
  if (!first_time_ns.compare_exchange_strong(never, now_ns) && now_ns - never > repeat_ns) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);  // takes effect when this handler returns
    return;
  }
  int none = 0;
  first_signal.compare_exchange_strong(none, signal);
}

}  // namespace

void watch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  for (const int signal : watched) sigaction(signal, &action, nullptr);
}

int stop_signal() {
  return first_signal;
}

std::string name_of_signal(int signal) {
  switch (signal) {
    case SIGTERM:
      return "SIGTERM";
    case SIGINT:
      return "SIGINT";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return fmt::format("signal {}", signal);
  }
}

}  // namespace atl
