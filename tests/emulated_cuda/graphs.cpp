// Stream capture and graphs of the runtime API.

#include <algorithm>
#include <atomic>
#include <memory>
#include <string_view>

#include "tests/emulated_cuda/streams.hpp"

using emulated::call;
using emulated::stream_of;

struct CUgraph_st {
  std::vector<emulated::Node> nodes;
};
struct CUgraphExec_st {
  std::vector<emulated::Node> nodes;
  emulated::CompletionPtr last;  ///< a graph runs once at a time
};

namespace {

/// True if every node comes before (or is) one of `ends`: nothing was left unjoined.
bool all_lead_to(const std::vector<emulated::Node>& nodes, const std::vector<int>& ends) {
  std::vector<bool> joined(nodes.size(), false);
  for (const int end : ends) joined[end] = true;
  for (int i = static_cast<int>(nodes.size()) - 1; i >= 0; --i)
    if (joined[i])
      for (const int before : nodes[i].after) joined[before] = true;
  return std::all_of(joined.begin(), joined.end(), [](bool b) { return b; });
}

bool same_shape(const std::vector<emulated::Node>& a, const std::vector<emulated::Node>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return std::string_view(x.kind) == y.kind && x.after == y.after;
  });
}

}  // namespace

extern "C" {

cudaError_t CUDARTAPI cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", [&] {
    cudaStream_t stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (handle == nullptr || handle == cudaStreamLegacy) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture != nullptr) return cudaErrorIllegalState;
    static unsigned long long ids = 0;
    stream->capture = std::make_shared<emulated::Capture>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->id = ++ids;
    stream->frontier.clear();
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", [&] {
    *graph = nullptr;
    cudaStream_t stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<emulated::Capture> capture = stream->capture;
    if (capture == nullptr) return cudaErrorIllegalState;
    if (capture->origin != stream) return cudaErrorStreamCaptureUnmatched;
    const std::vector<int> ends = stream->frontier;
    capture->origin = nullptr;
    emulated::for_each_stream([&](CUstream_st& s) {
      if (s.capture == capture) s.capture = nullptr;
    });
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!all_lead_to(capture->nodes, ends)) return cudaErrorStreamCaptureUnjoined;
    *graph = new CUgraph_st{capture->nodes};
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return call("cudaStreamIsCapturing", [&] {
    cudaStream_t stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    *status = stream->capture == nullptr ? cudaStreamCaptureStatusNone
              : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  thread_local cudaStreamCaptureMode of_thread = cudaStreamCaptureModeGlobal;
  std::swap(of_thread, *mode);
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", [&] {
    delete graph;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return call("cudaGraphGetNodes", [&] {
    if (nodes != nullptr) return cudaErrorNotSupported;
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                           unsigned long long) {
  return call("cudaGraphInstantiate", [&] {
    *exec = new CUgraphExec_st{graph->nodes, nullptr};
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                                    unsigned long long flags) {
  return cudaGraphInstantiate(exec, graph, flags);
}

cudaError_t CUDARTAPI cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                          cudaGraphExecUpdateResultInfo* info) {
  return call("cudaGraphExecUpdate", [&] {
    if (!same_shape(exec->nodes, graph->nodes)) {
      if (info != nullptr) info->result = cudaGraphExecUpdateErrorTopologyChanged;
      return cudaErrorGraphExecUpdateFailure;
    }
    exec->nodes = graph->nodes;
    if (info != nullptr) info->result = cudaGraphExecUpdateSuccess;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call("cudaGraphExecDestroy", [&] {
    delete exec;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return call("cudaGraphUpload", [] { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle) {
  return call("cudaGraphLaunch", [&] {
    cudaStream_t stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (stream->capture != nullptr) return cudaErrorNotSupported;  // child graphs: not emulated
    emulated::CompletionPtr begin;
    emulated::Work first{"marker", nullptr, {}, nullptr};
    if (exec->last != nullptr) first.after.push_back(exec->last);
    if (const cudaError_t e = emulated::enqueue(handle, std::move(first), &begin); e != cudaSuccess)
      return e;
    std::vector<emulated::CompletionPtr> done;
    for (const emulated::Node& node : exec->nodes) {
      emulated::Work work{node.kind, node.run, {begin}, nullptr};
      for (const int before : node.after) work.after.push_back(done[before]);
      done.push_back(emulated::enqueue_apart(std::move(work)));
    }
    return emulated::enqueue(handle, emulated::Work{"marker", nullptr, std::move(done), nullptr},
                             &exec->last);
  });
}

}  // extern "C"
