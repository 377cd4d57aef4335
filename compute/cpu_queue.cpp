#include "compute/cpu_queue.hpp"

#include <sched.h>

#include <chrono>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// How long the worker looks for the next operation before it sleeps. Yields meanwhile: ranks may
/// share cores, and the others' work is worth more than this thread's reaction time.
constexpr double spin_seconds = 30e-6;

}  // namespace

CpuQueue::CpuQueue(std::function<void()> start, std::function<void(const CpuOp&)> execute)
    : start_(std::move(start)), execute_(std::move(execute)), worker_([this] { work(); }) {}

CpuQueue::~CpuQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_available_.notify_one();
  worker_.join();
}

Event CpuQueue::enqueue(const CpuOp& op) {
  const Event event = enqueued_.load(std::memory_order_relaxed) + 1;
  while (event > capacity && completed_.load() < event - capacity) sched_yield();
  ring_[event % capacity] = op;
  // Sequentially consistent, as is sleeping_: either the worker sees the operation before it
  // sleeps, or this thread sees that it sleeps.
  enqueued_.store(event);
  if (sleeping_.load()) {
    { const std::lock_guard lock(mutex_); }
    work_available_.notify_one();
  }
  return event;
}

bool CpuQueue::next_ready(Event event) {
  return enqueued_.load() >= event || stopping_.load();
}

void CpuQueue::work() {
  start_();
  for (Event event = 1;; ++event) {
    if (!next_ready(event)) {
      const double until = seconds() + spin_seconds;
      while (!next_ready(event) && seconds() < until) sched_yield();
    }
    if (!next_ready(event)) {
      std::unique_lock lock(mutex_);
      sleeping_ = true;
      work_available_.wait(lock, [&] { return next_ready(event); });
      sleeping_ = false;
    }
    if (stopping_) return;
    run(event);
  }
}

void CpuQueue::run(Event event) {
  Interval& interval = intervals_[event % num_intervals];
  interval.begin = seconds();
  if (failed_.load() == 0) {
    try {
      execute_(ring_[event % capacity]);
    } catch (...) {
      failure_ = std::current_exception();
      failed_ = event;
    }
  }
  interval.end = seconds();
  completed_.store(event);
  if (waiting_.load() > 0) {
    { const std::lock_guard lock(mutex_); }
    op_completed_.notify_all();
  }
}

bool CpuQueue::done(Event event) {
  if (completed_.load() < event) return false;
  const Event failed = failed_.load();
  if (failed != 0 && event >= failed) std::rethrow_exception(failure_);
  return true;
}

bool CpuQueue::wait(Event event, int timeout_us) {
  if (!done(event)) {
    std::unique_lock lock(mutex_);
    ++waiting_;
    op_completed_.wait_for(lock, std::chrono::microseconds(timeout_us),
                           [&] { return completed_.load() >= event; });
    --waiting_;
  }
  return done(event);
}

Interval CpuQueue::interval(Event event) const {
  require(event > 0 && event <= completed_.load() && event + num_intervals > completed_.load(),
          "no interval for operation {} ({} completed, {} kept)", event, completed_.load(),
          num_intervals);
  return intervals_[event % num_intervals];
}

}  // namespace atl::compute
