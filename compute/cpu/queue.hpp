#pragma once
// The CPU backend's in-order queue: one worker thread, a ring of plain records, tickets.

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "compute/backend.hpp"

namespace atl::compute {

class CpuChunk;

/// One enqueued operation; a plain record, so that enqueueing allocates nothing.
struct CpuOp {
  enum class Kind : std::uint8_t {
    embed,
    attention,
    mlp,
    shared_expert,
    route,
    regroup,
    experts,
    fold,
    merge,
    sample,
    logits,
    logprobs,
    save_x,
    save_choices,
    save_kv,
    load_kv,
    host_task
  };
  Kind kind = Kind::host_task;
  CpuChunk* chunk = nullptr;
  int layer = 0;
  AttentionPart attention_part = AttentionPart::all;
  ExpertPart expert_part = ExpertPart::all;
  RouteTo to = RouteTo::experts;
  NodeRows node_rows;  // regroup and fold
  std::span<const RowBlock> blocks;
  std::span<const std::int32_t> rows;
  std::span<const std::int32_t> targets;  // logprobs
  ScoredToken* scored = nullptr;          // logprobs
  float* out = nullptr;
  std::span<const SamplingRequest> how;  // sample
  SampledToken* sampled = nullptr;
  float* x = nullptr;                   // save_x
  std::int32_t* experts = nullptr;      // save_choices, with `out` for the weights
  float* given_up = nullptr;            // likewise
  std::span<const std::int32_t> pages;  // save_kv and load_kv, with what follows
  int first_position = 0;
  int num_positions = 0;
  void* keys = nullptr;
  void* values = nullptr;
  const std::function<void()>* task = nullptr;
};

/// Runs operations in order, on its own thread or on the one that enqueues while that waits for
/// them. One thread enqueues, starts, waits and finishes. After an operation has thrown, later ones
/// complete without running.
class CpuQueue {
 public:
  /// `prepare` runs first on the worker thread, then `execute` for every operation.
  CpuQueue(std::function<void()> prepare, std::function<void(const CpuOp&)> execute);
  ~CpuQueue();  ///< drops what has not begun, waits for what has
  CpuQueue(const CpuQueue&) = delete;
  CpuQueue& operator=(const CpuQueue&) = delete;

  /// Waits for room when 1024 operations are under way.
  Event enqueue(const CpuOp& op);
  /// Hands what is enqueued to the worker.
  void start();
  bool done(Event event);
  bool wait(Event event, int timeout_us);
  /// Returns when the operation has completed; runs it on this thread if the worker has nothing.
  void finish(Event event, bool may_run_here);
  /// Returns when the worker has nothing left.
  void settle() const noexcept;
  Interval interval(Event event) const;

 private:
  static constexpr std::size_t capacity = 1024;
  static constexpr std::size_t num_intervals = 4096;

  void work();
  void run(Event event);
  bool worker_has_work() const { return started_.load() > completed_.load(); }

  std::function<void()> prepare_;
  std::function<void(const CpuOp&)> execute_;
  std::array<CpuOp, capacity> ring_;
  std::vector<Interval> intervals_ = std::vector<Interval>(num_intervals);
  Event enqueued_ = 0;  // of the enqueueing thread
  // Operations up to here are the worker's. While it has none left, the enqueueing thread may run
  // the next ones itself; only that thread raises this number, so the two never run at once.
  std::atomic<Event> started_{0};
  std::atomic<Event> completed_{0};
  std::atomic<Event> failed_{0};  // first operation that threw, 0 = none
  std::exception_ptr failure_;    // written before failed_
  std::atomic<bool> stopping_{false};
  std::atomic<bool> sleeping_{false};
  std::atomic<int> waiting_{0};
  std::mutex mutex_;
  std::condition_variable work_available_;
  std::condition_variable op_completed_;
  std::thread worker_;
};

}  // namespace atl::compute
