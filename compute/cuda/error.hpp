#pragma once
// Checked CUDA and cuBLASLt calls: one message that names call, step, layer, chunk and device.

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <functional>
#include <string>
#include <string_view>

namespace atl::compute::cuda {

/// What this thread is enqueuing, for messages; scopes nest, the innermost counts.
class Doing {
 public:
  /// `step` must outlive the scope; layer and chunk are -1 where there is none.
  explicit Doing(std::string_view step, int layer = -1, int chunk = -1);
  ~Doing();
  Doing(const Doing&) = delete;
  Doing& operator=(const Doing&) = delete;

 private:
  const Doing* outer_;
  std::string_view step_;
  int layer_;
  int chunk_;
  friend std::string doing();
};

/// E.g. "in L3 c1 experts" or "" outside any scope.
std::string doing();

/// "device 0 (NVIDIA H100)": which device messages speak of. Set once by open_cuda_device.
void name_device(std::string name);
const std::string& device_name();

/// Who can name the oldest operation that has not been seen completed; a failure that the device
/// reports through a later call most likely is that operation's. Called only on failure; may be
/// empty.
void name_under_way(std::function<std::string()> oldest);

/// Throws Error unless the call succeeded; `call` is the function's name.
void check(cudaError_t code, std::string_view call);
void check(cublasStatus_t code, std::string_view call);

}  // namespace atl::compute::cuda
