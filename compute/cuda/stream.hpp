#pragma once
// Streams and events with owners, and the clock that puts events on the host's time line.

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

namespace atl::compute::cuda {

/// A stream that does not wait for the default stream. Waits for its work when it goes.
class Stream {
 public:
  enum class Priority { normal, high };  ///< high: its small kernels pass between those of others
  explicit Stream(Priority priority = Priority::normal);

  cudaStream_t raw() const { return stream_.get(); }

 private:
  struct Destroy {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };
  std::unique_ptr<CUstream_st, Destroy> stream_;
};

class CudaEvent {
 public:
  enum class Timing { on, off };
  explicit CudaEvent(Timing timing);

  cudaEvent_t raw() const { return event_.get(); }
  void record(const Stream& stream) const;
  /// True when everything before it has completed, or when it was never recorded. Throws Error when
  /// the device failed.
  bool reached() const;
  /// `stream` goes on only after this event.
  void hold(const Stream& stream) const;

 private:
  struct Destroy {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  std::unique_ptr<CUevent_st, Destroy> event_;
};

/// Sleeps politely until the event is reached: for the rare waits outside the driver's polling.
void wait_for(const CudaEvent& event);

/// Seconds of the steady clock at which an event was reached. An event of known time is recorded
/// again about once a second, because differences are float32 milliseconds and clocks drift.
class DeviceClock {
 public:
  DeviceClock();
  /// Takes a newer base now and then, if that is reached at once; call it often.
  void refresh();
  /// `event` has been reached, was recorded with timing on, and not too long ago.
  double seconds_of(const CudaEvent& event) const;

 private:
  /// False where the event came late: the base stays.
  bool take_base();

  Stream stream_;  // always empty, so that its events are reached at once
  CudaEvent base_;
  CudaEvent next_;
  double base_seconds_ = 0;
  double next_try_ = 0;
};

}  // namespace atl::compute::cuda
