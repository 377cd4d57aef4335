#include "comm/transports/canary.hpp"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "comm/lane.hpp"
#include "comm/watchdog.hpp"

namespace atl::comm {

namespace {

using Clock = std::chrono::steady_clock;
using Words = std::vector<std::uint32_t>;

constexpr std::size_t row_words = 80;
constexpr std::size_t row_bytes = row_words * sizeof(std::uint32_t);
constexpr int large_rows = 13107;  // 4 MiB
constexpr int large_exchanges = 3;
constexpr std::uint32_t untouched = 0xdeadbeefU;
constexpr std::chrono::microseconds nap{20};

/// Rows that rank `from` sends to rank `to`: unequal, some of them none. Where much travels, it is
/// to ranks at distances of powers of two, so that it is not more with many ranks.
int rows_of(int from, int to, int size, bool large) {
  if (from == to) return 0;
  const auto distance = static_cast<unsigned>((to - from + size) % size);
  return (from * 3 + to * 5) % 7 + (large && std::has_single_bit(distance) ? large_rows : 0);
}

std::uint32_t word_of(int from, int to, int row, std::size_t at, int exchange) {
  return static_cast<std::uint32_t>(from) * 2654435761U + static_cast<std::uint32_t>(to) * 40503U +
         static_cast<std::uint32_t>(row) * 97U + static_cast<std::uint32_t>(at) +
         static_cast<std::uint32_t>(exchange) * 0x9e3779b9U;
}

/// MPI libraries that take a device pointer for a host pointer die of it. Nothing can be saved
/// then, but it can be said why.
class CrashMessage {
 public:
  CrashMessage() {
    struct sigaction action {};
    action.sa_handler = [](int) {
      constexpr char text[] =
          "atoll: the MPI library crashed on device memory, although it says that it is "
          "CUDA-aware; the same command takes another transport when it is started again; or use "
          "--transport pairwise-staged, or other MPI settings (for Open MPI over UCX, a UCX with "
          "CUDA)\n";
      [[maybe_unused]] const auto written = write(STDERR_FILENO, text, sizeof(text) - 1);
      _exit(1);
    };
    for (std::size_t i = 0; i < signals.size(); ++i) sigaction(signals[i], &action, &before_[i]);
  }
  ~CrashMessage() {
    for (std::size_t i = 0; i < signals.size(); ++i) sigaction(signals[i], &before_[i], nullptr);
  }
  CrashMessage(const CrashMessage&) = delete;
  CrashMessage& operator=(const CrashMessage&) = delete;

 private:
  static constexpr std::array<int, 3> signals = {SIGSEGV, SIGBUS, SIGABRT};
  std::array<struct sigaction, signals.size()> before_;
};

/// Rows, on the device where there is one.
class Buffer {
 public:
  Buffer(compute::DeviceMemory* device, bool lent, std::size_t words)
      : words_(words), device_(device) {
    if (device_ == nullptr) return;
    on_device_ = device_->allocate(bytes());
    pinned_ = device_->allocate_host(bytes());
    if (lent) device_->keep(on_device_);
  }
  Words& words() { return words_; }
  void* data() { return device_ != nullptr ? static_cast<void*>(on_device_.get()) : words_.data(); }
  void send_to_device() {
    if (device_ == nullptr) return;
    std::memcpy(pinned_.get(), words_.data(), bytes());
    wait(device_->to_device(on_device_.get(), pinned_.get(), bytes()));
  }
  void fetch() {
    if (device_ == nullptr) return;
    wait(device_->to_host(pinned_.get(), on_device_.get(), bytes()));
    std::memcpy(words_.data(), pinned_.get(), bytes());
  }

 private:
  std::size_t bytes() const { return words_.size() * sizeof(std::uint32_t); }
  void wait(compute::DeviceMemory::Copy copy) const {
    while (!device_->copied(copy)) std::this_thread::sleep_for(nap);
  }

  Words words_;
  compute::DeviceMemory* device_;
  compute::DeviceMemory::Bytes on_device_, pinned_;
};

RowMove move_of(int rank, int size, bool large) {
  RowMove move(size);
  int sent = 0;
  int received = 0;
  for (int peer = 0; peer < size; ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    move.send_counts[p] = rows_of(rank, peer, size, large);
    move.recv_counts[p] = rows_of(peer, rank, size, large);
    move.send_offsets[p] = sent;
    move.recv_offsets[p] = received;
    sent += move.send_counts[p];
    received += move.recv_counts[p];
  }
  return move;
}

/// Calls visit(peer, row, the row's first word) for every row of one direction.
template <class Visit>
void for_each_row(const std::vector<int>& counts, const std::vector<int>& offsets, Words& words,
                  const Visit& visit) {
  for (std::size_t p = 0; p < counts.size(); ++p) {
    for (int row = 0; row < counts[p]; ++row) {
      visit(static_cast<int>(p), row,
            words.data() + static_cast<std::size_t>(offsets[p] + row) * row_words);
    }
  }
}

/// A lane and the memory that MPI uses for it.
class Flight {
 public:
  Flight(const Communicator& parent, TransportKind kind, const CanaryOptions& options)
      : rank_(parent.rank()),
        patience_(options.patience),
        move_(move_of(parent.rank(), parent.size(), options.large)),
        lane_(parent, lane_options(kind, options.device)),
        send_(options.device, !info_of(kind).staged, words_of(move_.rows_sent())),
        receive_(options.device, !info_of(kind).staged, words_of(move_.rows_received())) {}

  /// Fills what is sent, and what is received with nothing of it.
  void fill(int exchange) {
    for_each_row(move_.send_counts, move_.send_offsets, send_.words(),
                 [&](int peer, int row, std::uint32_t* words) {
                   for (std::size_t i = 0; i < row_words; ++i) {
                     words[i] = word_of(rank_, peer, row, i, exchange);
                   }
                 });
    receive_.words().assign(receive_.words().size(), untouched);
    send_.send_to_device();
    receive_.send_to_device();
  }
  /// False when it did not end in time.
  bool fly() {
    const Waiting waiting("the transport's test");
    const auto begin = Clock::now();
    under_way_ = true;
    lane_.start(move_, send_.data(), receive_.data());
    while (!lane_.test()) {
      if (Clock::now() > begin + patience_) return false;
      std::this_thread::sleep_for(nap);
    }
    under_way_ = false;
    seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
    return true;
  }
  bool arrived(int exchange) {
    receive_.fetch();
    bool right = receive_.words().back() == untouched;
    for_each_row(move_.recv_counts, move_.recv_offsets, receive_.words(),
                 [&](int peer, int row, const std::uint32_t* words) {
                   for (std::size_t i = 0; i < row_words; ++i) {
                     right &= words[i] == word_of(peer, rank_, row, i, exchange);
                   }
                 });
    return right;
  }
  bool under_way() const { return under_way_; }
  double bytes_per_s() const {
    return static_cast<double>(move_.rows_received()) * row_bytes / std::max(seconds_, 1e-9);
  }

 private:
  static LaneOptions lane_options(TransportKind kind, compute::DeviceMemory* device) {
    LaneOptions options;
    options.transport = kind;
    options.row_bytes = row_bytes;
    options.device = device;
    return options;
  }
  static std::size_t words_of(std::int64_t rows) {
    return static_cast<std::size_t>(rows) * row_words + 1;
  }

  int rank_;
  std::chrono::milliseconds patience_;
  RowMove move_;
  Lane lane_;
  Buffer send_, receive_;
  bool under_way_ = false;
  double seconds_ = 0;
};

/// What this rank saw, worst first.
enum class Seen : std::int64_t { no_end, wrong, right };

struct Sight {
  Seen seen = Seen::right;
  double bytes_per_s = 0;
};

Sight look(const Communicator& parent, TransportKind kind, const CanaryOptions& options) {
  std::unique_ptr<Flight> flight;
  Sight sight;
  try {
    flight = std::make_unique<Flight>(parent, kind, options);
    for (int exchange = 0; exchange < (options.large ? large_exchanges : 1); ++exchange) {
      flight->fill(exchange);
      if (!flight->fly()) {
        sight.seen = Seen::no_end;
        break;
      }
      if (!flight->arrived(exchange)) sight.seen = Seen::wrong;
      // The first makes connections and finds out how memory is reached.
      if (exchange > 0) sight.bytes_per_s = std::max(sight.bytes_per_s, flight->bytes_per_s());
    }
  } catch (const Error&) {
    sight.seen = flight && flight->under_way() ? Seen::no_end : Seen::wrong;
  }
  // MPI may write to the memory of what did not end: it goes with the process.
  if (sight.seen == Seen::no_end) static_cast<void>(flight.release());
  return sight;
}

CanaryResult together(const Communicator& parent, const Sight& mine) {
  auto worst = static_cast<std::int64_t>(mine.seen);
  double slowest = mine.bytes_per_s;
  parent.allreduce(std::span(&worst, 1), Communicator::Reduce::min);
  parent.allreduce(std::span(&slowest, 1), Communicator::Reduce::min);
  return {static_cast<Seen>(worst) == Seen::right, static_cast<Seen>(worst) != Seen::no_end,
          slowest};
}

}  // namespace

CanaryResult fly_canary(const Communicator& parent, TransportKind kind,
                        const CanaryOptions& options) {
  std::optional<CrashMessage> message;
  if (options.device != nullptr && !info_of(kind).staged) message.emplace();
  CanaryOptions few = options;
  few.large = false;
  CanaryResult result = together(parent, look(parent, kind, few));
  if (options.large && result.passed) result = together(parent, look(parent, kind, options));
  return result;
}

}  // namespace atl::comm
