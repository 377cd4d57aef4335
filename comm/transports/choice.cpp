#include "comm/transports/choice.hpp"

#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "comm/environment.hpp"
#include "comm/lane.hpp"
#include "comm/mpi_library.hpp"
#include "comm/watchdog.hpp"

namespace atl::comm {

namespace {

using Words = std::vector<std::uint32_t>;

constexpr std::size_t canary_words = 80;  // of a row
constexpr std::uint32_t untouched = 0xdeadbeefU;
constexpr std::chrono::seconds canary_patience{60};
constexpr std::chrono::microseconds nap{20};

/// Rows that rank `from` sends to rank `to` in the canary: unequal, some of them none.
int canary_rows(int from, int to) {
  return from == to ? 0 : (from * 3 + to * 5) % 7;
}

std::uint32_t canary_word(int from, int to, int row, std::size_t at) {
  return static_cast<std::uint32_t>(from) * 2654435761U + static_cast<std::uint32_t>(to) * 40503U +
         static_cast<std::uint32_t>(row) * 97U + static_cast<std::uint32_t>(at);
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
          "CUDA-aware; use --transport pairwise-staged, or other MPI settings (for Open MPI over "
          "UCX, a UCX with CUDA)\n";
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
  static constexpr std::array<int, 2> signals = {SIGSEGV, SIGBUS};
  std::array<struct sigaction, signals.size()> before_;
};

/// The canary's rows, on the device where there is one.
class CanaryBuffer {
 public:
  CanaryBuffer(compute::DeviceMemory* device, Words& words) : device_(device), words_(words) {
    if (device_ == nullptr) return;
    on_device_ = device_->allocate(bytes());
    pinned_ = device_->allocate_host(bytes());
    std::memcpy(pinned_.get(), words_.data(), bytes());
    wait(device_->to_device(on_device_.get(), pinned_.get(), bytes()));
  }
  void* data() const {
    if (device_ != nullptr) return on_device_.get();
    return words_.data();
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

  compute::DeviceMemory* device_;
  Words& words_;
  compute::DeviceMemory::Bytes on_device_, pinned_;
};

RowMove canary_move(int rank, int size) {
  RowMove move(size);
  int sent = 0;
  int received = 0;
  for (int peer = 0; peer < size; ++peer) {
    const auto p = static_cast<std::size_t>(peer);
    move.send_counts[p] = canary_rows(rank, peer);
    move.recv_counts[p] = canary_rows(peer, rank);
    move.send_offsets[p] = sent;
    move.recv_offsets[p] = received;
    sent += move.send_counts[p];
    received += move.recv_counts[p];
  }
  return move;
}

/// Calls visit(peer, row, index of the row's first word) for every row of one direction.
template <class Visit>
void for_each_row(const std::vector<int>& counts, const std::vector<int>& offsets, Visit&& visit) {
  for (std::size_t p = 0; p < counts.size(); ++p) {
    for (int row = 0; row < counts[p]; ++row) {
      visit(static_cast<int>(p), row, static_cast<std::size_t>(offsets[p] + row) * canary_words);
    }
  }
}

bool canary_ok(const Communicator& parent, TransportKind kind, compute::DeviceMemory* device) {
  const int rank = parent.rank();
  LaneOptions options;
  options.transport = kind;
  options.row_bytes = canary_words * sizeof(std::uint32_t);
  options.device = device;
  Lane lane(parent, options);
  const RowMove move = canary_move(rank, parent.size());
  Words out(static_cast<std::size_t>(move.rows_sent()) * canary_words + 1);
  Words in(static_cast<std::size_t>(move.rows_received()) * canary_words + 1, untouched);
  for_each_row(move.send_counts, move.send_offsets, [&](int peer, int row, std::size_t first) {
    for (std::size_t i = 0; i < canary_words; ++i) out[first + i] = canary_word(rank, peer, row, i);
  });
  CanaryBuffer send(device, out);
  CanaryBuffer receive(device, in);
  lane.start(move, send.data(), receive.data());
  const Waiting waiting("the transport's test");
  const auto deadline = std::chrono::steady_clock::now() + canary_patience;
  while (!lane.test()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(nap);
  }
  receive.fetch();
  bool right = in.back() == untouched;
  for_each_row(move.recv_counts, move.recv_offsets, [&](int peer, int row, std::size_t first) {
    for (std::size_t i = 0; i < canary_words; ++i) {
      right &= in[first + i] == canary_word(peer, rank, row, i);
    }
  });
  return right;
}

/// True on all ranks if true on all.
bool everywhere(const Communicator& parent, bool here) {
  std::int64_t all = here ? 1 : 0;
  parent.allreduce(std::span(&all, 1), Communicator::Reduce::min);
  return all == 1;
}

}  // namespace

std::vector<TransportKind> transports_to_try(bool on_device, bool over_ucx) {
  std::vector<TransportKind> order;
  for (const TransportInfo& transport : transports) order.push_back(transport.kind);
  if (on_device && !over_ucx) {
    std::stable_partition(order.begin(), order.end(),
                          [](TransportKind kind) { return kind == TransportKind::pairwise; });
  }
  return order;
}

bool canary(const Communicator& parent, TransportKind kind, compute::DeviceMemory* device) {
  bool right = false;
  try {
    if (device != nullptr && !info_of(kind).staged) {
      const CrashMessage message;
      right = canary_ok(parent, kind, device);
    } else {
      right = canary_ok(parent, kind, device);
    }
  } catch (const Error&) {
    right = false;
  }
  return everywhere(parent, right);
}

TransportKind choose_transport(const Communicator& parent, std::optional<TransportKind> wanted,
                               compute::DeviceMemory* device) {
  const std::string_view name = wanted ? name_of(*wanted) : "auto";
  const bool on_device = device != nullptr;
  const bool direct = !on_device || everywhere(parent, mpi_library::claims_device_memory());
  for (const TransportKind kind :
       transports_to_try(on_device, on_device && everywhere(parent, mpi_library::over_ucx()))) {
    const TransportInfo& transport = info_of(kind);
    if (wanted.value_or(kind) != kind) continue;
    if (transport.staged && !on_device) {
      if (!wanted) continue;
      fail(
          "transport '{}' stages device memory, and here rows are in host memory; use --transport "
          "ialltoallv or pairwise",
          name);
    }
    if (!transport.staged && !direct) {
      if (!wanted) continue;
      fail(
          "transport '{}' cannot move device memory here ({} says that it is not CUDA-aware); use "
          "--transport pairwise-staged, or an MPI library with CUDA (jobs/build-openmpi-cuda.sh)",
          name, Environment::library());
    }
    if (canary(parent, kind, device)) return kind;
  }
  fail(
      "transport '{}' does not work here (a test exchange between all ranks lost or altered rows, "
      "or did not end within 60 s); try another --transport or other MPI settings",
      name);
}

}  // namespace atl::comm
