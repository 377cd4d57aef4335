#include "tests/emulated_cuda/queue.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <map>
#include <thread>

#include "tests/emulated_cuda/memory.hpp"
#include "tests/emulated_cuda/settings.hpp"
#include "tests/emulated_cuda/streams.hpp"

namespace emulated {
namespace {

constexpr auto idle_time = std::chrono::milliseconds(2);

/// State of all devices. Never destroyed: the program's own statics may use it until the end.
struct Device {
  std::recursive_mutex mutex;
  std::list<std::unique_ptr<CUstream_st>> streams;
  std::map<int, cudaStream_t> default_streams;
  Random random{settings().seed};
  cudaError_t sticky = cudaSuccess;
  unsigned until_new_weights = 0;
  std::atomic<std::uint64_t> calls{0};
  bool running = false;
};

Device& device() {
  static auto* instance = new Device;
  return *instance;
}

thread_local int device_of_thread = 0;
thread_local cudaError_t error_of_thread = cudaSuccess;
thread_local bool in_host_function = false;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool ready(const CUstream_st& stream) {
  return !stream.queue.empty() &&
         std::all_of(stream.queue.front().after.begin(), stream.queue.front().after.end(),
                     [](const CompletionPtr& c) { return c->done; });
}

/// Draws the stream whose next work runs, or none.
std::list<std::unique_ptr<CUstream_st>>::iterator draw() {
  Device& d = device();
  if (d.until_new_weights == 0) {
    static constexpr unsigned weights[] = {1, 30, 1000};
    for (auto& stream : d.streams) stream->weight = weights[d.random.below(3)];
    d.until_new_weights = 1 + static_cast<unsigned>(d.random.below(64));
  }
  --d.until_new_weights;
  std::size_t total = 0;
  for (const auto& stream : d.streams)
    if (ready(*stream)) total += stream->weight;
  if (total == 0) return d.streams.end();
  std::size_t drawn = d.random.below(total);
  for (auto it = d.streams.begin(); it != d.streams.end(); ++it) {
    if (!ready(**it)) continue;
    if (drawn < (*it)->weight) return it;
    drawn -= (*it)->weight;
  }
  return d.streams.end();
}

void run(Work& work) {
  Device& d = device();
  if (d.sticky == cudaSuccess && work.run) {
    if (const int code = injected_failure(work.kind); code != 0)
      d.sticky = static_cast<cudaError_t>(code);
  }
  if (d.sticky == cudaSuccess && work.run) {
    if (std::string_view(work.kind) == "host") {
      in_host_function = true;
      work.run();
      in_host_function = false;
    } else {
      const DeviceAccess access;
      work.run();
    }
  }
  work.done->done = true;
  work.done->time = now();
}

/// Lets work run while the host is silent, as a device would.
class Idle {
 public:
  Idle() : thread_([this] { loop(); }) {}
  ~Idle() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

 private:
  void loop() {
    std::uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (!wake_.wait_for(lock, idle_time, [this] { return stop_; })) {
      Device& d = device();
      const std::uint64_t calls = d.calls;
      if (calls == seen) {
        const std::lock_guard device_lock(d.mutex);
        progress(16);
      }
      seen = calls;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

CompletionPtr append(cudaStream_t stream, Work work) {
  work.done = std::make_shared<Completion>();
  stream->last = work.done;
  CompletionPtr done = work.done;
  stream->queue.push_back(std::move(work));
  return done;
}

/// The default stream waits for all blocking streams, and these wait for it.
void order_with_default(cudaStream_t stream, Work& work) {
  Device& d = device();
  const cudaStream_t legacy = d.default_streams[stream->device];
  if (stream == legacy) {
    for (const auto& other : d.streams)
      if (other.get() != stream && other->blocking && other->last)
        work.after.push_back(other->last);
  } else if (stream->blocking && legacy != nullptr && legacy->last) {
    work.after.push_back(legacy->last);
  }
}

bool someone_captures(bool blocking_only) {
  const auto& streams = device().streams;
  return std::any_of(streams.begin(), streams.end(), [&](const auto& s) {
    return s->capture != nullptr && (s->blocking || !blocking_only);
  });
}

}  // namespace

Call::Call(const char* name) : lock_(device().mutex) {
  Device& d = device();
  ++d.calls;
  if (in_host_function) {
    status_ = cudaErrorNotPermitted;
  } else if (settings().devices == 0) {
    status_ = cudaErrorNoDevice;
  } else if (const int code = injected_failure(name); code != 0) {
    status_ = static_cast<cudaError_t>(code);
  } else {
    status_ = d.sticky;
  }
}

cudaError_t Call::finish(cudaError_t status) {
  if (status != cudaSuccess && status != cudaErrorNotReady) error_of_thread = status;
  return status;
}

cudaStream_t add_stream(bool blocking) {
  static Idle idle;
  Device& d = device();
  auto stream = std::make_unique<CUstream_st>();
  stream->device = device_of_thread;
  stream->blocking = blocking;
  d.streams.push_back(std::move(stream));
  return d.streams.back().get();
}

cudaStream_t stream_of(cudaStream_t handle) {
  Device& d = device();
  if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread) {
    cudaStream_t& legacy = d.default_streams[device_of_thread];
    if (legacy == nullptr) legacy = add_stream(true);
    return legacy;
  }
  for (const auto& stream : d.streams)
    if (stream.get() == handle && !stream->transient) return handle;
  return nullptr;
}

cudaError_t enqueue(cudaStream_t handle, Work work, CompletionPtr* done) {
  cudaStream_t stream = stream_of(handle);
  if (stream == nullptr || stream->device != device_of_thread)
    return cudaErrorInvalidResourceHandle;
  order_with_default(stream, work);
  CompletionPtr completion = append(stream, std::move(work));
  if (done != nullptr) *done = completion;
  Device& d = device();
  if (settings().eager) {
    run_all();
  } else if (d.random.below(8) == 0) {
    progress(1 + d.random.below(3));
  }
  return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t handle, const char* kind, std::function<void()> run,
                    std::vector<CompletionPtr> after) {
  cudaStream_t stream = stream_of(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (stream->capture != nullptr) {
    Capture& capture = *stream->capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.nodes.push_back({kind, std::move(run), stream->frontier});
    stream->frontier = {static_cast<int>(capture.nodes.size()) - 1};
    return cudaSuccess;
  }
  if (stream == device().default_streams[stream->device] && someone_captures(true))
    return cudaErrorStreamCaptureImplicit;
  return enqueue(handle, Work{kind, std::move(run), std::move(after), nullptr}, nullptr);
}

CompletionPtr enqueue_apart(Work work) {
  cudaStream_t stream = add_stream(false);
  stream->transient = true;
  return append(stream, std::move(work));
}

void remove_stream(cudaStream_t stream) {
  stream->transient = true;
  device().streams.remove_if([](const auto& s) { return s->transient && s->queue.empty(); });
}

bool progress(std::size_t most) {
  Device& d = device();
  if (d.running) return false;  // a host function waits: it runs inside this very loop
  d.running = true;
  bool any = false;
  for (std::size_t i = 0; i < most; ++i) {
    const auto it = draw();
    if (it == d.streams.end()) break;
    Work work = std::move((*it)->queue.front());
    (*it)->queue.pop_front();
    run(work);
    any = true;
    if ((*it)->transient && (*it)->queue.empty()) d.streams.erase(it);
  }
  d.running = false;
  return any;
}

void run_until(const CompletionPtr& done) {
  for (;;) {
    const std::lock_guard lock(device().mutex);
    if (done == nullptr || done->done) return;
    progress(1);
  }
}

void run_all() {
  while (progress(64)) {
  }
}

void progress_a_little() {
  progress(device().random.below(4));
}

void set_sticky_error(cudaError_t error) {
  device().sticky = error;
}
cudaError_t sticky_error() {
  return device().sticky;
}

cudaError_t last_error(bool clear) {
  const cudaError_t error = device().sticky != cudaSuccess ? device().sticky : error_of_thread;
  if (clear) error_of_thread = cudaSuccess;
  return error;
}

int& current_device() {
  return device_of_thread;
}

bool capture_forbids_unsafe_calls() {
  const auto& streams = device().streams;
  return std::any_of(streams.begin(), streams.end(), [](const auto& s) {
    return s->capture != nullptr && s->capture->mode != cudaStreamCaptureModeRelaxed;
  });
}

void for_each_stream(const std::function<void(CUstream_st&)>& visit) {
  for (auto& stream : device().streams) visit(*stream);
}

}  // namespace emulated
