#include "compute/cuda/stream.hpp"

#include <chrono>
#include <thread>
#include <utility>

#include "compute/clock.hpp"
#include "compute/cuda/error.hpp"

namespace atl::compute::cuda {

namespace {
constexpr double base_lifetime_s = 1;
/// An event of an empty stream takes longer only behind others' work, where streams share a queue
/// of the hardware's or the host was not there: when it was reached is not known then.
constexpr double late_s = 100e-6;
constexpr double retry_s = 0.05;
constexpr int most_tries = 20;
constexpr std::chrono::microseconds nap{20};
}  // namespace

Stream::Stream(Priority priority) {
  int lowest = 0;
  int highest = 0;
  check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                     priority == Priority::high ? highest : lowest),
        "cudaStreamCreateWithPriority");
  stream_.reset(stream);
}

CudaEvent::CudaEvent(Timing timing) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event,
                                 timing == Timing::on ? cudaEventDefault : cudaEventDisableTiming),
        "cudaEventCreateWithFlags");
  event_.reset(event);
}

void CudaEvent::record(const Stream& stream) const {
  check(cudaEventRecord(event_.get(), stream.raw()), "cudaEventRecord");
}

bool CudaEvent::reached() const {
  const cudaError_t code = cudaEventQuery(event_.get());
  if (code == cudaErrorNotReady) return false;
  check(code, "cudaEventQuery");
  return true;
}

void CudaEvent::hold(const Stream& stream) const {
  check(cudaStreamWaitEvent(stream.raw(), event_.get(), 0), "cudaStreamWaitEvent");
}

void wait_for(const CudaEvent& event) {
  while (!event.reached()) std::this_thread::sleep_for(nap);
}

/// The best of a few: the first use of a stream takes longer, as all do on a busy host.
DeviceClock::DeviceClock() : base_(CudaEvent::Timing::on), next_(CudaEvent::Timing::on) {
  double best = 0;
  for (int i = 0; i < most_tries && (i < 2 || best > late_s); ++i) {
    const double begin = now_seconds();
    next_.record(stream_);
    while (!next_.reached()) {
    }
    const double took = now_seconds() - begin;
    if (i > 0 && took >= best) continue;
    best = took;
    std::swap(base_, next_);
    base_seconds_ = begin;
  }
  next_try_ = base_seconds_ + base_lifetime_s;
}

bool DeviceClock::take_base() {
  const double begin = now_seconds();
  next_.record(stream_);
  while (!next_.reached()) {
    if (now_seconds() > begin + late_s) break;
  }
  if (now_seconds() > begin + late_s) {
    next_try_ = now_seconds() + retry_s;
    return false;
  }
  std::swap(base_, next_);
  base_seconds_ = begin;
  next_try_ = begin + base_lifetime_s;
  return true;
}

void DeviceClock::refresh() {
  if (now_seconds() > next_try_) take_base();
}

double DeviceClock::seconds_of(const CudaEvent& event) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, base_.raw(), event.raw()), "cudaEventElapsedTime");
  return base_seconds_ + static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace atl::compute::cuda
