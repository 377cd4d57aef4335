#pragma once
// What ranks tell one another beside MPI: small datagrams between the watchdogs of a job, which get
// through while the threads that own MPI are stuck in it. Lost datagrams are asked for again; where
// a site lets none through, ranks seem not to answer, and everything else works.

#include <netinet/in.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace atl::comm {

/// What a rank is doing.
enum class Activity : std::uint8_t {
  busy,       ///< work of its own
  computing,  ///< arithmetic of a pass
  waiting,    ///< for other ranks
};

/// What a rank says about itself. Texts end with 0 or fill their array.
struct RankState {
  Activity activity = Activity::busy;
  float seconds = 0;                ///< since anything changed
  std::int64_t pass = -1;           ///< -1: none is under way
  std::int16_t layer = -1;          ///< -1 where there is none
  std::int16_t chunk = -1;          ///< the same
  std::array<char, 40> what{};      ///< e.g. "dispatch", "MPI_Comm_dup"
  std::array<char, 40> stage{};     ///< e.g. "set-up"
  std::array<char, 160> details{};  ///< whom MPI still awaits, where it can tell
};

/// Who sits where, exchanged once by MPI.
struct RankAddress {
  static constexpr int max_interfaces = 4;
  std::array<std::uint32_t, max_interfaces> ips{};  ///< IPv4, network byte order; 0: none
  std::uint16_t port = 0;                           ///< network byte order; 0: no channel
  std::uint64_t network = 0;                        ///< ranks with equal values share a loopback
  std::int32_t pid = 0;
  std::array<char, 64> host{};
};

class SideChannel {
 public:
  enum class Kind : std::uint8_t {
    hello,  ///< teaches the receiver the way back
    ask,    ///< what are you doing? `state` is the asker's
    tell,   ///< the answer
    end,    ///< the sender ends the job and says why
  };
  struct Message {
    std::uint64_t key = 0;
    Kind kind = Kind::hello;
    std::int32_t from = 0;
    std::int32_t to = 0;
    RankState state;
  };

  /// Opens a socket; where that fails, nothing is sent and nothing arrives.
  SideChannel();
  ~SideChannel();
  SideChannel(const SideChannel&) = delete;
  SideChannel& operator=(const SideChannel&) = delete;

  /// This rank's, for the others.
  RankAddress address() const;
  /// Learns who the others are; `key` tells this job's datagrams from others'. Once, from any
  /// thread; before that nothing can be sent.
  void connect(int rank, std::vector<RankAddress> all, std::uint64_t key);
  bool connected() const { return connected_.load(std::memory_order_acquire); }

  int rank() const { return rank_; }
  int size() const { return static_cast<int>(addresses_.size()); }
  /// "rank 3 (node07, process 1234)".
  std::string name_of(int rank) const;

  void send(int to, Kind kind, const RankState& state) const;
  void send_to_all(Kind kind, const RankState& state) const;  ///< but this rank
  /// Waits up to `timeout_ms` for a datagram of this job.
  bool receive(Message& message, int timeout_ms);

 private:
  int socket_ = -1;
  int rank_ = 0;
  std::uint64_t key_ = 0;
  std::uint64_t network_ = 0;
  std::vector<RankAddress> addresses_;
  std::vector<sockaddr_in> heard_;  // where each rank's last datagram came from; port 0: none yet
  std::atomic<bool> connected_{false};
};

}  // namespace atl::comm
