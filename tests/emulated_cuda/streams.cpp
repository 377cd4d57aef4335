// Streams, events and host functions of the runtime API.

#include "tests/emulated_cuda/streams.hpp"

#include <algorithm>
#include <set>

#include "tests/emulated_cuda/settings.hpp"

using emulated::call;
using emulated::stream_of;

namespace {

/// Waiting for a stream that captures is an error and spoils the capture.
bool spoils_capture(cudaStream_t stream) {
  if (stream->capture == nullptr) return false;
  stream->capture->invalid = true;
  return true;
}

std::set<cudaEvent_t>& events() {
  static auto* all = new std::set<cudaEvent_t>;
  return *all;
}

cudaError_t stream_error(cudaStream_t stream) {
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  return spoils_capture(stream) ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

/// Runs work until `done`, without holding the device; then what went wrong meanwhile.
cudaError_t wait_for(const char* name, const emulated::CompletionPtr& done) {
  emulated::run_until(done);
  emulated::Call guard(name);
  return guard.finish(emulated::sticky_error());
}

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return call("cudaStreamCreate", [&] {
    if ((flags & ~static_cast<unsigned>(cudaStreamNonBlocking)) != 0) return cudaErrorInvalidValue;
    *stream = emulated::add_stream((flags & cudaStreamNonBlocking) == 0);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t CUDARTAPI cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t stream) {
  return call("cudaStreamDestroy", [&] {
    if (stream == nullptr || stream_of(stream) == nullptr) return cudaErrorInvalidResourceHandle;
    emulated::remove_stream(stream);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call("cudaDeviceGetStreamPriorityRange", [&] {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t stream) {
  emulated::CompletionPtr last;
  const cudaError_t status = call("cudaStreamSynchronize", [&] {
    const cudaError_t error = stream_error(stream_of(stream));
    if (error == cudaSuccess) last = stream_of(stream)->last;
    return error;
  });
  return status == cudaSuccess ? wait_for("wait", last) : status;
}

cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t stream) {
  return call("cudaStreamQuery", [&] {
    if (const cudaError_t error = stream_error(stream_of(stream)); error != cudaSuccess)
      return error;
    emulated::progress_a_little();
    if (emulated::sticky_error() != cudaSuccess) return emulated::sticky_error();
    const emulated::CompletionPtr last = stream_of(stream)->last;
    return last == nullptr || last->done ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t CUDARTAPI cudaDeviceSynchronize() {
  const cudaError_t status = call("cudaDeviceSynchronize", [&] {
    bool captured = false;
    emulated::for_each_stream([&](CUstream_st& s) { captured |= spoils_capture(&s); });
    if (captured) return cudaErrorStreamCaptureUnsupported;
    emulated::run_all();
    return emulated::sticky_error();
  });
  return status;
}

cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned flags) {
  return call("cudaStreamWaitEvent", [&] {
    cudaStream_t stream = stream_of(handle);
    if (stream == nullptr || events().count(event) == 0) return cudaErrorInvalidResourceHandle;
    if (flags != 0) return cudaErrorNotSupported;
    if (event->capture != nullptr) {
      if (event->capture->origin == nullptr) return cudaErrorStreamCaptureUnmatched;  // ended
      if (stream->capture == nullptr) {
        stream->capture = event->capture;
        stream->frontier.clear();
      }
      if (stream->capture != event->capture) return cudaErrorStreamCaptureMerge;
      for (const int node : event->frontier)
        if (std::find(stream->frontier.begin(), stream->frontier.end(), node) ==
            stream->frontier.end())
          stream->frontier.push_back(node);
      return cudaSuccess;
    }
    if (stream->capture != nullptr) {
      if (event->recorded == nullptr) return cudaSuccess;
      stream->capture->invalid = true;
      return cudaErrorStreamCaptureIsolation;
    }
    if (event->recorded == nullptr) return cudaSuccess;
    return emulated::enqueue(handle, "marker", nullptr, {event->recorded});
  });
}

cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call("cudaLaunchHostFunc",
              [&] { return emulated::enqueue(stream, "host", [=] { function(data); }); });
}

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call("cudaEventCreate", [&] {
    *event = new CUevent_st;
    (*event)->flags = flags;
    events().insert(*event);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t event) {
  return call("cudaEventDestroy", [&] {
    if (events().erase(event) == 0) return cudaErrorInvalidResourceHandle;
    delete event;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  return call("cudaEventRecord", [&] {
    cudaStream_t stream = stream_of(handle);
    if (stream == nullptr || events().count(event) == 0) return cudaErrorInvalidResourceHandle;
    event->capture = stream->capture;
    if (stream->capture != nullptr) {
      event->frontier = stream->frontier;
      return cudaSuccess;
    }
    return emulated::enqueue(handle, emulated::Work{"marker", nullptr, {}, nullptr},
                             &event->recorded);
  });
}

cudaError_t CUDARTAPI cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                               unsigned flags) {
  return flags == 0 ? cudaEventRecord(event, stream) : cudaErrorNotSupported;
}

cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t event) {
  return call("cudaEventQuery", [&] {
    if (events().count(event) == 0) return cudaErrorInvalidResourceHandle;
    if (event->capture != nullptr) return cudaErrorCapturedEvent;
    emulated::progress_a_little();
    if (emulated::sticky_error() != cudaSuccess) return emulated::sticky_error();
    return event->recorded == nullptr || event->recorded->done ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t event) {
  emulated::CompletionPtr recorded;
  const cudaError_t status = call("cudaEventSynchronize", [&] {
    if (events().count(event) == 0) return cudaErrorInvalidResourceHandle;
    if (event->capture != nullptr) return cudaErrorCapturedEvent;
    recorded = event->recorded;
    return cudaSuccess;
  });
  return status == cudaSuccess ? wait_for("wait", recorded) : status;
}

cudaError_t CUDARTAPI cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  return call("cudaEventElapsedTime", [&] {
    if (events().count(start) == 0 || events().count(end) == 0)
      return cudaErrorInvalidResourceHandle;
    if (((start->flags | end->flags) & cudaEventDisableTiming) != 0 || start->recorded == nullptr ||
        end->recorded == nullptr)
      return cudaErrorInvalidResourceHandle;
    if (!start->recorded->done || !end->recorded->done) return cudaErrorNotReady;
    *ms = static_cast<float>((end->recorded->time - start->recorded->time) * 1e3);
    return cudaSuccess;
  });
}

}  // extern "C"
