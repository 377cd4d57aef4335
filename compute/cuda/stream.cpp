#include "compute/cuda/stream.hpp"

#include <chrono>
#include <thread>
#include <utility>

#include "compute/clock.hpp"
#include "compute/cuda/error.hpp"

namespace atl::compute::cuda {

namespace {
constexpr double base_lifetime_s = 1;
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

DeviceClock::DeviceClock() : base_(CudaEvent::Timing::on), next_(CudaEvent::Timing::on) {
  for (int i = 0; i < 2; ++i) {  // the first use of a stream takes longer
    base_seconds_ = now_seconds();
    base_.record(stream_);
    wait_for(base_);
  }
}

void DeviceClock::refresh() {
  if (next_pending_) {
    if (!next_.reached()) return;
    std::swap(base_, next_);
    base_seconds_ = next_seconds_;
    next_pending_ = false;
  } else if (now_seconds() - base_seconds_ > base_lifetime_s) {
    next_seconds_ = now_seconds();
    next_.record(stream_);
    next_pending_ = true;
  }
}

double DeviceClock::seconds_of(const CudaEvent& event) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, base_.raw(), event.raw()), "cudaEventElapsedTime");
  return base_seconds_ + static_cast<double>(milliseconds) * 1e-3;
}

}  // namespace atl::compute::cuda
