#include "comm/watchdog.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "comm/communicator.hpp"
#include "compute/clock.hpp"

namespace atl::comm {

namespace {

constexpr int tick_ms = 200;
/// Time counts only while this process runs: a job that was suspended as a whole is not overdue.
constexpr double longest_tick_s = 1.0;
constexpr double details_after_s = 1.0;
constexpr double answer_s = 1.5;     ///< how long the others have to answer
constexpr double ask_again_s = 0.5;  ///< datagrams may be lost
constexpr double turn_s = 0.25;      ///< a rank asks so much later than the one before it
constexpr int most_turns = 8;
constexpr double yield_s = 4.0;     ///< how long a lower rank that waits too may take to speak
constexpr double end_s = 0.5;       ///< from the end of the message to the end of the process
constexpr double abort_s = 2.0;     ///< MPI_Abort may take so long
constexpr double warn_share = 0.1;  ///< of the allowance, and at least
constexpr double warn_least_s = 5.0;
constexpr double warn_without_deadline_s = 30.0;

/// What the thread that owns MPI says about itself; see watched. It is the only writer.
struct State {
  std::atomic<std::uint64_t> changes{0};
  std::atomic<Activity> activity{Activity::busy};
  std::atomic<const char*> what{""};
  std::atomic<const char*> stage{"start"};
  std::atomic<double> allowance_s{0};
  std::atomic<bool> work_may_last{false};
  std::atomic<std::int64_t> pass{-1};
  std::atomic<std::int32_t> layer{-1};
  std::atomic<std::int32_t> chunk{-1};
  std::atomic<bool> details_wanted{false};
  std::mutex details_mutex;
  std::string details;

  void changed() {
    changes.store(changes.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
};
State state;

template <std::size_t N>
void put(std::array<char, N>& field, const std::string& text) {
  field.fill('\0');
  std::memcpy(field.data(), text.data(), std::min(text.size(), N));
}

template <std::size_t N>
std::string text_of(const std::array<char, N>& field) {
  return {field.data(), strnlen(field.data(), N)};
}

/// What a launcher says, for messages before MPI can.
int announced_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return 0;
}

/// "step 17, layer 3, chunk 1, dispatch" or "set-up, MPI_Comm_dup".
std::string place_of(const RankState& s) {
  std::string place = s.pass < 0 ? text_of(s.stage) : fmt::format("step {}", s.pass);
  if (s.layer >= 0) place += fmt::format(", layer {}", s.layer);
  if (s.chunk >= 0) place += fmt::format(", chunk {}", s.chunk);
  const std::string what = text_of(s.what);
  return what.empty() ? place : place + ", " + what;
}

void print_line(const std::string& text) {
  // A progress bar may have left the cursor inside a line.
  const std::string line = fmt::format("{}atoll: {}\n", isatty(2) != 0 ? "\n" : "", text);
  const char* at = line.data();
  std::size_t left = line.size();
  while (left > 0) {
    const ssize_t written = ::write(2, at, left);
    if (written <= 0) return;
    at += written;
    left -= static_cast<std::size_t>(written);
  }
}

/// Before ranks can ask one another, one of those that a launcher started on this node speaks for
/// all: who first takes a name that goes with the process.
bool speaks_for_node() {
  static const bool first = [] {
    const char* job = std::getenv("PMIX_NAMESPACE");
    if (job == nullptr) job = std::getenv("SLURM_JOB_ID");
    if (job == nullptr) return true;
    sockaddr_un name{};
    name.sun_family = AF_UNIX;  // with a first byte of 0: no file
    const std::string text = fmt::format("atoll.{}", job).substr(0, sizeof name.sun_path - 1);
    text.copy(name.sun_path + 1, text.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
    const int taken = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);  // kept to the end
    return taken < 0 || bind(taken, reinterpret_cast<const sockaddr*>(&name), length) == 0;
  }();
  return first;
}

void sleep_s(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

}  // namespace

namespace watched {

void stage(const char* name, double allowance_s, bool work_may_last) {
  state.stage.store(name, std::memory_order_relaxed);
  state.allowance_s.store(allowance_s, std::memory_order_relaxed);
  state.work_may_last.store(work_may_last, std::memory_order_relaxed);
  state.changed();
}

void begin_pass(std::int64_t pass) {
  state.pass.store(pass, std::memory_order_relaxed);
  at("", -1, -1, Activity::computing);
  state.changed();
}

void end_pass() {
  state.pass.store(-1, std::memory_order_relaxed);
  at("", -1, -1, Activity::busy);
  state.changed();
}

void progress() {
  state.changed();
}

void at(const char* what, int layer, int chunk, Activity activity) {
  state.what.store(what, std::memory_order_relaxed);
  state.layer.store(layer, std::memory_order_relaxed);
  state.chunk.store(chunk, std::memory_order_relaxed);
  state.activity.store(activity, std::memory_order_relaxed);
}

bool details_wanted() {
  return state.details_wanted.load(std::memory_order_relaxed);
}

void tell_details(const std::string& text) {
  const std::lock_guard lock(state.details_mutex);
  state.details = text;
}

}  // namespace watched

Waiting::Waiting(const char* what)
    : outer_what_(state.what.load(std::memory_order_relaxed)),
      outer_activity_(state.activity.load(std::memory_order_relaxed)) {
  state.what.store(what, std::memory_order_relaxed);
  state.activity.store(Activity::waiting, std::memory_order_relaxed);
  state.changed();
}

Waiting::~Waiting() {
  state.what.store(outer_what_, std::memory_order_relaxed);
  state.activity.store(outer_activity_, std::memory_order_relaxed);
  state.changed();
}

/// The thread and what it knows; only the thread uses the channel after connect().
struct Watchdog::Impl {
  /// A question to all other ranks, under way.
  struct Inquiry {
    bool to_end = false;  ///< the allowance is used up; else a warning is due
    double asked = 0;
    double last_asked = 0;
    std::vector<std::optional<RankState>> answers;  // [ranks]
  };
  /// What the answers say.
  struct Findings {
    std::vector<int> silent;
    std::vector<std::string> late;  ///< ranks that answer but keep the others waiting, and by what
    int waiting_too = 0;
    bool lower_rank_waits = false;
  };

  SideChannel channel;
  std::thread thread;
  std::atomic<bool> stopping{false};
  std::mutex failure_mutex;
  std::optional<std::string> failure;  // main thread's message: end the job with it
  std::atomic<bool> failure_told{false};

  std::uint64_t seen = 0;  // state.changes at the last tick
  double still_s = 0;      // since it changed
  double last_tick = 0;
  double warn_at_s = 0;  // warnings come later and later
  bool warned = false;   // of this wait
  bool greeted = false;
  double heard_lower_rank = -1e9;  // when one that waits as well asked
  double yield_until = -1;         // a lower rank should speak before
  double claimed = 0;              // this rank is about to print the last message since then
  std::optional<Inquiry> inquiry;

  int rank() const { return channel.connected() ? channel.rank() : announced_rank(); }
  void work();
  void tick();
  void answer(const SideChannel::Message& message);
  bool due(double limit_s) const;
  void ask(bool to_end);
  void conclude();
  Findings findings() const;
  std::string message_of(const Findings& found) const;
  RankState own_state() const;
  [[noreturn]] void end(const std::string& message, bool by_main_thread);
};

RankState Watchdog::Impl::own_state() const {
  RankState s;
  s.activity = state.activity.load(std::memory_order_relaxed);
  s.seconds = static_cast<float>(still_s);
  s.pass = state.pass.load(std::memory_order_relaxed);
  s.layer = static_cast<std::int16_t>(state.layer.load(std::memory_order_relaxed));
  s.chunk = static_cast<std::int16_t>(state.chunk.load(std::memory_order_relaxed));
  put(s.what, state.what.load(std::memory_order_relaxed));
  put(s.stage, state.stage.load(std::memory_order_relaxed));
  const std::lock_guard lock(state.details_mutex);
  put(s.details, state.details);
  return s;
}

void Watchdog::Impl::work() {
  last_tick = now_seconds();
  while (!stopping) {
    SideChannel::Message message;
    if (channel.receive(message, tick_ms)) answer(message);
    if (channel.connected() && !greeted) {
      channel.send_to_all(SideChannel::Kind::hello, own_state());
      greeted = true;
    }
    if (now_seconds() - last_tick >= tick_ms * 1e-3) tick();
  }
}

void Watchdog::Impl::answer(const SideChannel::Message& message) {
  switch (message.kind) {
    case SideChannel::Kind::hello:
      return;
    case SideChannel::Kind::ask:
      if (message.from < channel.rank() && message.state.activity == Activity::waiting) {
        heard_lower_rank = now_seconds();
      }
      return channel.send(message.from, SideChannel::Kind::tell, own_state());
    case SideChannel::Kind::tell:
      if (inquiry) inquiry->answers[static_cast<std::size_t>(message.from)] = message.state;
      return;
    case SideChannel::Kind::end:
      if (claimed > 0 && message.from > channel.rank()) return;  // both speak: the lower one does
      sleep_s(end_s);
      _exit(1);
  }
}

void Watchdog::Impl::tick() {
  const double now = now_seconds();
  {
    const std::lock_guard lock(failure_mutex);
    if (failure && !failure_told) end(*failure, /*by_main_thread=*/true);
  }
  const std::uint64_t changes = state.changes.load(std::memory_order_relaxed);
  if (changes != seen) {
    seen = changes;
    still_s = 0;
    warned = false;
    yield_until = -1;
    inquiry.reset();
    state.details_wanted.store(false, std::memory_order_relaxed);
    const std::lock_guard lock(state.details_mutex);
    state.details.clear();
  } else {
    still_s += std::min(now - last_tick, longest_tick_s);
  }
  last_tick = now;
  if (state.activity.load(std::memory_order_relaxed) == Activity::busy) return;
  if (still_s > details_after_s) state.details_wanted.store(true, std::memory_order_relaxed);
  const auto num_ranks = static_cast<std::size_t>(channel.connected() ? channel.size() : 0);
  if (inquiry && inquiry->answers.size() != num_ranks) inquiry.reset();  // connected just now
  if (inquiry) {
    if (now - inquiry->asked >= answer_s) return conclude();
    if (now - inquiry->last_asked < ask_again_s) return;
    inquiry->last_asked = now;
    for (int other = 0; other < channel.size(); ++other) {
      if (other == channel.rank() || inquiry->answers[static_cast<std::size_t>(other)]) continue;
      channel.send(other, SideChannel::Kind::ask, own_state());
    }
    return;
  }
  const double allowance = state.allowance_s.load(std::memory_order_relaxed);
  const double warn_s =
      allowance > 0 ? std::max(warn_least_s, warn_share * allowance) : warn_without_deadline_s;
  if (allowance > 0 && due(allowance)) {
    ask(/*to_end=*/true);
  } else if (!warned && due(std::max(warn_s, warn_at_s)) &&
             (allowance <= 0 || still_s < allowance) &&
             state.activity.load(std::memory_order_relaxed) == Activity::waiting) {
    ask(/*to_end=*/false);
  }
}

/// The time has come to act on a wait of `limit_s`, unless a lower rank is about to.
bool Watchdog::Impl::due(double limit_s) const {
  const double turn = std::min(rank(), most_turns) * turn_s;
  const double now = now_seconds();
  return still_s >= limit_s + turn && now >= yield_until && now - heard_lower_rank >= yield_s;
}

void Watchdog::Impl::ask(bool to_end) {
  inquiry.emplace();
  inquiry->to_end = to_end;
  inquiry->asked = inquiry->last_asked = now_seconds();
  inquiry->answers.resize(static_cast<std::size_t>(channel.connected() ? channel.size() : 0));
  channel.send_to_all(SideChannel::Kind::ask, own_state());
}

Watchdog::Impl::Findings Watchdog::Impl::findings() const {
  Findings found;
  for (int other = 0; other < static_cast<int>(inquiry->answers.size()); ++other) {
    if (other == channel.rank()) continue;
    const auto& answer = inquiry->answers[static_cast<std::size_t>(other)];
    if (!answer) {
      found.silent.push_back(other);
    } else if (answer->activity != Activity::waiting) {
      found.late.push_back(fmt::format("{} has been at work for {:.0f} s ({})",
                                       channel.name_of(other), answer->seconds, place_of(*answer)));
    } else if (answer->seconds < still_s / 2) {
      found.late.push_back(
          fmt::format("{} still makes progress ({})", channel.name_of(other), place_of(*answer)));
    } else {
      ++found.waiting_too;
      found.lower_rank_waits |= other < channel.rank();
    }
  }
  return found;
}

std::string Watchdog::Impl::message_of(const Findings& found) const {
  constexpr std::size_t most_named = 8;
  const RankState own = own_state();
  const char* verb =
      own.activity == Activity::waiting ? "waited for other ranks" : "computed without an end";
  std::string text =
      fmt::format("rank {} has {} for {:.0f} s ({})", rank(), verb, still_s, place_of(own));
  std::vector<std::string> causes;
  for (const int silent : found.silent) {
    causes.push_back(channel.name_of(silent) + " does not answer (stopped, dead or cut off)");
  }
  causes.insert(causes.end(), found.late.begin(), found.late.end());
  const std::size_t unnamed = causes.size() - std::min(causes.size(), most_named);
  causes.resize(causes.size() - unnamed);
  if (!causes.empty()) text += fmt::format(": {}", fmt::join(causes, "; "));
  if (unnamed > 0) text += fmt::format("; and {} more ranks", unnamed);
  const std::string details = text_of(own.details);
  if (!channel.connected()) {
    text += ": not all ranks have come so far";
  } else if (causes.empty() && channel.size() > 1) {
    text += ": all ranks answer, so messages are lost or the network is stuck";
  }
  if (!details.empty()) text += fmt::format("; MPI awaits {}", details);
  if (found.waiting_too > 0) text += fmt::format("; {} other ranks wait too", found.waiting_too);
  return text;
}

void Watchdog::Impl::conclude() {
  const bool to_end = inquiry->to_end;
  const Findings found = findings();
  const std::string text = message_of(found);
  inquiry.reset();
  if (!channel.connected() && !speaks_for_node()) {
    warned = true;
    if (!to_end) return;
    sleep_s(yield_s);
    _exit(1);
  }
  const bool may_last = state.work_may_last.load(std::memory_order_relaxed);
  if (may_last && channel.connected() && found.silent.empty() && !found.late.empty()) {
    still_s = 0;
    return;
  }
  if (found.lower_rank_waits && !to_end) {
    warned = true;  // it does that
    return;
  }
  if (found.lower_rank_waits && yield_until < 0) {
    yield_until = now_seconds() + yield_s;  // it speaks first; but this rank waits only once
    return;
  }
  if (to_end) {
    end(text + "; all ranks end. Look at the ranks named and their hosts, or raise --deadline",
        /*by_main_thread=*/false);
  }
  warned = true;
  warn_at_s = 2 * still_s;
  print_line(text);
}

/// Says why, tells the others to end, and ends this process, whatever its other threads are in.
void Watchdog::Impl::end(const std::string& message, bool by_main_thread) {
  claimed = now_seconds();
  channel.send_to_all(SideChannel::Kind::end, own_state());
  // A lower rank that speaks at the same time is heard now, and this one stays silent.
  for (SideChannel::Message heard; now_seconds() < claimed + tick_ms * 1e-3;) {
    if (channel.receive(heard, tick_ms / 4)) answer(heard);
  }
  print_line(message);
  failure_told = true;
  sleep_s(by_main_thread ? abort_s : end_s);
  channel.send_to_all(SideChannel::Kind::end, own_state());
  _exit(1);
}

Watchdog::Watchdog() : impl_(std::make_unique<Impl>()) {
  // Signals are for the main thread.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl_->thread = std::thread([impl = impl_.get()] { impl->work(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  impl_->stopping = true;
  impl_->thread.join();
}

void Watchdog::connect(const Communicator& world) {
  std::uint64_t key = (std::uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  const auto keys = world.allgather(key);
  impl_->channel.connect(world.rank(), world.allgather(impl_->channel.address()), keys[0]);
}

void Watchdog::abort(const Communicator& world, const std::string& message) {
  {
    const std::lock_guard lock(impl_->failure_mutex);
    impl_->failure = fmt::format("rank {}: {}", world.rank(), message);
  }
  while (!impl_->failure_told) sleep_s(tick_ms * 1e-4);
  world.abort(1);
}

}  // namespace atl::comm
