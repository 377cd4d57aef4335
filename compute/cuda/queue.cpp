#include "compute/cuda/queue.hpp"

#include <fmt/format.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "compute/clock.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

constexpr std::chrono::microseconds nap{20};

/// The step's name as the schedule prints it, without allocating.
struct StepName {
  std::array<char, 64> text{};
  StepName(std::string_view step, int layer, int chunk) {
    char* at = text.data();
    char* const last = text.data() + text.size() - 1;
    const auto room = [&] { return static_cast<std::size_t>(last - at); };
    if (layer >= 0) at = fmt::format_to_n(at, room(), "L{} ", layer).out;
    if (chunk >= 0) at = fmt::format_to_n(at, room(), "c{} ", chunk).out;
    fmt::format_to_n(at, room(), "{}", step);
  }
};

}  // namespace

CudaQueue::CudaQueue() : ring_(capacity), kept_(num_kept) {
  for (std::size_t i = 0; i < stream_names.size(); ++i) {
    const auto id = static_cast<StreamId>(i);
    streams_.emplace_back(id == StreamId::compute ? Stream::Priority::normal
                                                  : Stream::Priority::high);
  }
  name_under_way([this] { return oldest_under_way(); });
}

CudaQueue::~CudaQueue() {
  name_under_way({});
  settle();
}

void CudaQueue::settle() const noexcept {
  for (const Stream& stream : streams_) cudaStreamSynchronize(stream.raw());
}

CudaQueue::Ticket& CudaQueue::open(std::string_view step, int layer, int chunk) {
  clock_.refresh();
  const Event event = enqueued_ + 1;
  Ticket& next = ticket(event);
  while (!next.completed && !done(next.event)) std::this_thread::sleep_for(nap);
  next.event = event;
  next.completed = false;
  next.step = step;
  next.layer = layer;
  next.chunk = chunk;
  next.num_parts = 0;
  next.failed = false;
  enqueued_ = event;
  return next;
}

bool CudaQueue::done(Event event) {
  require(event > 0 && event <= enqueued_, "there is no operation {}", event);
  Ticket& asked = ticket(event);
  if (asked.event != event) return true;  // its place was taken after it had completed
  if (!asked.completed) {
    for (std::size_t i = 0; i < asked.num_parts; ++i) {
      const cudaError_t code = cudaEventQuery(asked.parts[i].end.raw());
      if (code == cudaErrorNotReady) return false;
      check(code, "cudaEventQuery");
    }
    complete(asked);
  }
  if (asked.failed.load()) std::rethrow_exception(asked.failure);
  return true;
}

void CudaQueue::complete(Ticket& asked) {
  Kept& kept = kept_[asked.event % num_kept];
  kept.num_parts = asked.num_parts;
  for (std::size_t i = 0; i < asked.num_parts; ++i) {
    const Part& part = asked.parts[i];
    const double begin = clock_.seconds_of(part.begin);
    kept.parts[i] = {begin, std::max(begin, clock_.seconds_of(part.end)),
                     static_cast<int>(part.stream),
                     part.stream == StreamId::copy || part.stream == StreamId::host};
  }
  asked.completed = true;
}

bool CudaQueue::wait(Event event, int timeout_us) {
  const double until = now_seconds() + timeout_us * 1e-6;
  while (!done(event)) {
    if (now_seconds() >= until) return false;
    std::this_thread::sleep_for(nap);
  }
  return true;
}

std::size_t CudaQueue::intervals(Event event, std::span<Interval> parts) const {
  const Ticket& asked = ring_[event % capacity];
  require(event > 0 && event <= enqueued_ && event + num_kept > enqueued_ &&
              (asked.event != event || asked.completed),
          "no interval for operation {} ({} enqueued, {} kept)", event, enqueued_, num_kept);
  const Kept& kept = kept_[event % num_kept];
  std::copy_n(kept.parts.begin(), kept.num_parts, parts.begin());
  return kept.num_parts;
}

Interval CudaQueue::interval(Event event) const {
  std::array<Interval, Backend::max_parts> parts;
  const std::size_t count = intervals(event, parts);
  Interval whole = parts[0];
  for (std::size_t i = 1; i < count; ++i) {
    whole.begin = std::min(whole.begin, parts[i].begin);
    whole.end = std::max(whole.end, parts[i].end);
  }
  return whole;
}

std::string CudaQueue::oldest_under_way() const {
  const Event first = enqueued_ >= capacity ? enqueued_ - capacity + 1 : 1;
  for (Event event = first; event <= enqueued_; ++event) {
    const Ticket& one = ring_[event % capacity];
    if (one.event != event || one.completed) continue;
    return StepName(one.step, one.layer, one.chunk).text.data();
  }
  return "nothing";
}

Op::Op(CudaQueue& queue, std::string_view step, int layer, ChunkOrder* order)
    : queue_(queue),
      order_(order),
      doing_(step, layer, order == nullptr ? -1 : order->index),
      ticket_(queue.open(step, layer, order == nullptr ? -1 : order->index)) {
  nvtxRangePushA(StepName(step, layer, ticket_.chunk).text.data());
}

Op::~Op() {
  if (!closed_) {  // an exception passes; nothing will ask for this operation
    ticket_.num_parts = 0;
    ticket_.completed = true;
  }
  nvtxRangePop();
}

CudaQueue::Part& Op::add_part(StreamId id) {
  require(ticket_.num_parts < ticket_.parts.size(), "internal: too many parts of an operation");
  CudaQueue::Part& part = ticket_.parts[ticket_.num_parts++];
  part.stream = id;
  part.ended = false;
  return part;
}

const Stream& Op::begin(StreamId id) {
  const Stream& stream = queue_.stream(id);
  const bool first = ticket_.num_parts == 0;
  CudaQueue::Part& part = add_part(id);
  if (!first) {
    end_first();
    ticket_.parts[0].end.hold(stream);
  } else if (order_ != nullptr && order_->last > 0) {
    const CudaQueue::Ticket& before = queue_.ticket(order_->last);
    if (before.event == order_->last && !before.completed) {
      for (std::size_t i = 0; i < before.num_parts; ++i) {
        if (before.parts[i].stream != id) before.parts[i].end.hold(stream);
      }
    }
  }
  part.begin.record(stream);
  return stream;
}

const Stream& Op::begin_beside(StreamId id) {
  const Stream& stream = queue_.stream(id);
  add_part(id).begin.record(stream);
  return stream;
}

void Op::end(CudaQueue::Part& part) {
  if (part.ended) return;
  part.end.record(queue_.stream(part.stream));
  part.ended = true;
}

void Op::end_first() {
  end(ticket_.parts[0]);
}

void Op::run_on_host(std::function<void()> task) {
  ticket_.task = std::move(task);
  const auto call = [](void* data) {
    auto& ticket = *static_cast<CudaQueue::Ticket*>(data);
    try {
      ticket.task();
    } catch (...) {
      ticket.failure = std::current_exception();
      ticket.failed = true;
    }
  };
  const StreamId id = ticket_.parts[ticket_.num_parts - 1].stream;
  check(cudaLaunchHostFunc(queue_.stream(id).raw(), call, &ticket_), "cudaLaunchHostFunc");
}

Event Op::close() {
  for (std::size_t i = 0; i < ticket_.num_parts; ++i) end(ticket_.parts[i]);
  if (order_ != nullptr) order_->last = ticket_.event;
  closed_ = true;
  return ticket_.event;
}

}  // namespace atl::compute::cuda
