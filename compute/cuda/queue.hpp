#pragma once
// The CUDA backend's streams, and the tickets of what was enqueued on them.
//
//   compute   GEMMs, attention, norms: everything that needs the shared workspace, in order
//   pack      a chunk's rows into the exchange buffers, and between them, beside another chunk's
//             GEMMs
//   merge     what came back for a chunk, which would else wait behind what is packed next
//   copy      small things that others wait for: token ids to the device, row counts to the host
//   host      results (tokens, log-probabilities) to the host, and host functions
//
// Streams are ordered among one another by events alone. An operation has one part on each stream
// it uses; its first part follows the operation before it of the same chunk.

#include <array>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "compute/backend.hpp"
#include "compute/cuda/error.hpp"
#include "compute/cuda/stream.hpp"

namespace atl::compute::cuda {

enum class StreamId : std::uint8_t { compute, pack, copy, host, merge };
inline constexpr std::array<const char*, 5> stream_names = {"compute", "pack", "copy", "host",
                                                            "merge"};

class CudaQueue {
 public:
  CudaQueue();
  ~CudaQueue();  ///< waits for what is under way
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  const Stream& stream(StreamId id) const { return streams_[static_cast<std::size_t>(id)]; }

  bool done(Event event);
  bool wait(Event event, int timeout_us);
  /// Waits for all streams; says nothing of errors.
  void settle() const noexcept;
  Interval interval(Event event) const;
  std::size_t intervals(Event event, std::span<Interval> parts) const;

 private:
  friend class Op;
  static constexpr std::size_t capacity = 64;  // operations under way
  static constexpr std::size_t num_kept = 4096;

  struct Part {
    StreamId stream = StreamId::compute;
    CudaEvent begin{CudaEvent::Timing::on};
    CudaEvent end{CudaEvent::Timing::on};
    bool ended = false;
  };
  struct Ticket {
    Event event = 0;
    bool completed = true;
    std::string_view step;
    int layer = -1;
    int chunk = -1;
    std::array<Part, Backend::max_parts> parts;
    std::size_t num_parts = 0;
    std::function<void()> task;  // a host function, which runs on a thread of the CUDA library
    std::exception_ptr failure;
    std::atomic<bool> failed{false};
  };
  struct Kept {
    std::size_t num_parts = 0;
    std::array<Interval, Backend::max_parts> parts;
  };

  Ticket& open(std::string_view step, int layer, int chunk);
  Ticket& ticket(Event event) { return ring_[event % capacity]; }
  void complete(Ticket& ticket);
  /// The oldest operation that has not completed, for the message about a failure.
  std::string oldest_under_way() const;

  std::vector<Stream> streams_;
  std::vector<Ticket> ring_;
  std::vector<Kept> kept_;
  DeviceClock clock_;
  Event enqueued_ = 0;
};

/// What orders the operations of one chunk.
struct ChunkOrder {
  int index = -1;  ///< of the chunk; -1 outside chunks
  Event last = 0;  ///< its last operation
};

/// One operation while it is enqueued: its ticket, its parts, its name in messages and profiles.
class Op {
 public:
  /// `step` is a literal: a name of the schedule's steps. `order` may be null: nothing to follow.
  Op(CudaQueue& queue, std::string_view step, int layer, ChunkOrder* order);
  ~Op();
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  /// Starts a part: the first one follows the chunk's last operation, later ones the first part.
  const Stream& begin(StreamId id);
  /// Starts a part that follows nothing; the caller orders it.
  const Stream& begin_beside(StreamId id);
  /// Ends the first part, so that others can follow it; otherwise close() ends all parts.
  void end_first();
  /// Runs a host function on the stream of the last part.
  void run_on_host(std::function<void()> task);
  /// The operation is complete as enqueued.
  Event close();

 private:
  CudaQueue::Part& add_part(StreamId id);
  void end(CudaQueue::Part& part);

  CudaQueue& queue_;
  ChunkOrder* order_;
  Doing doing_;
  CudaQueue::Ticket& ticket_;
  bool closed_ = false;
};

}  // namespace atl::compute::cuda
