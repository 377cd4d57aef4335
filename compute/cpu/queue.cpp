#include "compute/cpu/queue.hpp"

#include <sched.h>

#include <algorithm>
#include <chrono>

#include "compute/clock.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

/// How long the worker looks for the next operation before it sleeps. Yields meanwhile: ranks may
/// share cores, and the others' work is worth more than this thread's reaction time.
constexpr double spin_seconds = 30e-6;

}  // namespace

CpuQueue::CpuQueue(std::function<void()> prepare, std::function<void(const CpuOp&)> execute)
    : prepare_(std::move(prepare)), execute_(std::move(execute)), worker_([this] { work(); }) {}

CpuQueue::~CpuQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_available_.notify_one();
  worker_.join();
}

Event CpuQueue::enqueue(const CpuOp& op) {
  const Event event = enqueued_ + 1;
  if (event > capacity && completed_.load() < event - capacity) {
    start();
    while (completed_.load() < event - capacity) sched_yield();
  }
  ring_[event % capacity] = op;
  enqueued_ = event;
  return event;
}

void CpuQueue::start() {
  if (started_.load() == enqueued_) return;
  // Sequentially consistent, as is sleeping_: either the worker sees the operations before it
  // sleeps, or this thread sees that it sleeps.
  started_.store(enqueued_);
  if (sleeping_.load()) {
    { const std::lock_guard lock(mutex_); }
    work_available_.notify_one();
  }
}

void CpuQueue::work() {
  prepare_();
  for (;;) {
    const auto ready = [this] { return worker_has_work() || stopping_.load(); };
    if (!ready()) {
      const double until = now_seconds() + spin_seconds;
      while (!ready() && now_seconds() < until) sched_yield();
    }
    if (!ready()) {
      std::unique_lock lock(mutex_);
      sleeping_ = true;
      work_available_.wait(lock, ready);
      sleeping_ = false;
    }
    if (stopping_) return;
    run(completed_.load() + 1);
  }
}

void CpuQueue::run(Event event) {
  Interval& interval = intervals_[event % num_intervals];
  interval.begin = now_seconds();
  if (failed_.load() == 0) {
    try {
      execute_(ring_[event % capacity]);
    } catch (...) {
      failure_ = std::current_exception();
      failed_ = event;
    }
  }
  interval.end = now_seconds();
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

void CpuQueue::finish(Event event, bool may_run_here) {
  while (may_run_here && !worker_has_work() && completed_.load() < event) {
    const Event next = completed_.load() + 1;
    run(next);
    started_.store(std::max(started_.load(), next));
  }
  constexpr int long_us = 100000;
  while (!done(event)) wait(event, long_us);
}

bool CpuQueue::wait(Event event, int timeout_us) {
  start();
  if (!done(event)) {
    std::unique_lock lock(mutex_);
    ++waiting_;
    op_completed_.wait_for(lock, std::chrono::microseconds(timeout_us),
                           [&] { return completed_.load() >= event; });
    --waiting_;
  }
  return done(event);
}

void CpuQueue::settle() const noexcept {
  while (worker_has_work()) sched_yield();
}

Interval CpuQueue::interval(Event event) const {
  require(event > 0 && event <= completed_.load() && event + num_intervals > completed_.load(),
          "no interval for operation {} ({} completed, {} kept)", event, completed_.load(),
          num_intervals);
  return intervals_[event % num_intervals];
}

}  // namespace atl::compute
