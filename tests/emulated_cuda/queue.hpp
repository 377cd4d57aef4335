#pragma once
// Streams of the emulated device. Work is queued, and runs later: when the host asks or waits, now
// and then at any call, or after the host has been silent for a while. What runs next is drawn
// among all streams whose next piece of work has what it waits for, with odds that change from time
// to time, so that one stream may run far ahead of the others.

#include <cuda_runtime_api.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace emulated {

/// Set once a piece of work has run.
struct Completion {
  bool done = false;
  double time = 0;  ///< seconds of the steady clock
};
using CompletionPtr = std::shared_ptr<Completion>;

struct Work {
  const char* kind = "";  ///< kernel, copy, fill, matmul, host or marker
  std::function<void()> run;
  std::vector<CompletionPtr> after;
  CompletionPtr done;
};

/// One node of a graph: work, and the nodes that come before it.
struct Node {
  const char* kind = "";
  std::function<void()> run;
  std::vector<int> after;
};

/// A capture under way: the graph it builds and the stream in which it began.
struct Capture {
  std::vector<Node> nodes;
  cudaStream_t origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool invalid = false;
  unsigned long long id = 0;
};

/// Locks the device for one call of the API and decides whether the call may go on.
class Call {
 public:
  explicit Call(const char* name);
  cudaError_t status() const { return status_; }
  /// Remembers a failure for cudaGetLastError.
  cudaError_t finish(cudaError_t status);

 private:
  std::unique_lock<std::recursive_mutex> lock_;
  cudaError_t status_ = cudaSuccess;
};

/// Runs the body of an API function: checks for injected, sticky and capture errors around it.
template <class Body>
cudaError_t call(const char* name, Body&& body) {
  Call guard(name);
  return guard.finish(guard.status() == cudaSuccess ? body() : guard.status());
}

/// Adds work to a stream, or to the graph that it captures.
cudaError_t enqueue(cudaStream_t stream, const char* kind, std::function<void()> run,
                    std::vector<CompletionPtr> after = {});
/// As enqueue, for a stream that does not capture; gives the work's completion.
cudaError_t enqueue(cudaStream_t stream, Work work, CompletionPtr* done);

/// The stream behind a handle (0 is the current device's default stream), null if it is none.
cudaStream_t stream_of(cudaStream_t handle);

/// Runs pieces of work, at most `most`; false when nothing could run.
bool progress(std::size_t most);
/// Runs work until `done` is set. The caller must not hold the device.
void run_until(const CompletionPtr& done);
/// Runs all work there is.
void run_all();
/// Some of what a polling host gives the device time for.
void progress_a_little();

/// Marks the device broken, as a kernel does that accesses what it may not.
void set_sticky_error(cudaError_t error);
cudaError_t sticky_error();
/// What cudaGetLastError returns, and forgets if `clear`.
cudaError_t last_error(bool clear);
/// Device of the calling thread.
int& current_device();
/// True while some stream captures in a way that forbids calls such as cudaMalloc.
bool capture_forbids_unsafe_calls();

}  // namespace emulated

/// The runtime's opaque handles.
struct CUstream_st {
  int device = 0;
  bool blocking = true;    ///< ordered against the default stream
  bool transient = false;  ///< goes away when it is empty
  std::deque<emulated::Work> queue;
  emulated::CompletionPtr last;  ///< of what was enqueued last
  unsigned weight = 1;
  std::shared_ptr<emulated::Capture> capture;
  std::vector<int> frontier;  ///< nodes that the next captured one follows
};

struct CUevent_st {
  unsigned flags = 0;
  emulated::CompletionPtr recorded;
  std::shared_ptr<emulated::Capture> capture;
  std::vector<int> frontier;
};
