#include "compute/cuda/error.hpp"

#include <utility>

#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

thread_local const Doing* innermost = nullptr;

std::string& device_text() {
  static std::string text = "the CUDA device";
  return text;
}

std::function<std::string()>& oldest_under_way() {
  static std::function<std::string()> oldest;
  return oldest;
}

/// Failures of the call itself; all others may come from work enqueued before.
bool is_of_the_call(cudaError_t code) {
  switch (code) {
    case cudaErrorInvalidValue:
    case cudaErrorMemoryAllocation:
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidResourceHandle:
      return true;
    default:
      return false;
  }
}

std::string advice(cudaError_t code) {
  switch (code) {
    case cudaErrorMemoryAllocation:
      return "; give the ranks less to hold (--kv-tokens, --step-tokens, more ranks)";
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInvalidDevice:
      return "; see nvidia-smi, or use --backend cpu";
    default:
      return "; the device's results are lost: see its health with nvidia-smi and start again";
  }
}

std::string where() {
  const std::string text = doing();
  return text.empty() ? text : " " + text;
}

}  // namespace

Doing::Doing(std::string_view step, int layer, int chunk)
    : outer_(innermost), step_(step), layer_(layer), chunk_(chunk) {
  innermost = this;
}

Doing::~Doing() {
  innermost = outer_;
}

std::string doing() {
  if (innermost == nullptr) return "";
  std::string text = "in ";
  if (innermost->layer_ >= 0) text += fmt::format("L{} ", innermost->layer_);
  if (innermost->chunk_ >= 0) text += fmt::format("c{} ", innermost->chunk_);
  return text.append(innermost->step_);
}

void name_device(std::string name) {
  device_text() = std::move(name);
}

void name_under_way(std::function<std::string()> oldest) {
  oldest_under_way() = std::move(oldest);
}

const std::string& device_name() {
  return device_text();
}

void check(cudaError_t code, std::string_view call) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // what is reported here must not be found again by a later call
  std::string meanwhile;
  if (!is_of_the_call(code) && oldest_under_way()) {
    meanwhile = fmt::format(" while {} was under way", oldest_under_way()());
  }
  fail("{} failed{} on {}{}: {} ({}){}", call, where(), device_name(), meanwhile,
       cudaGetErrorString(code), cudaGetErrorName(code), advice(code));
}

void check(cublasStatus_t code, std::string_view call) {
  if (code == CUBLAS_STATUS_SUCCESS) return;
  // On a device that has failed before, every call fails; why it did says more.
  const cudaError_t before = cudaStreamQuery(nullptr);
  if (before != cudaErrorNotReady) check(before, call);
  fail("{} failed{} on {}: {} ({}); see the device's health with nvidia-smi", call, where(),
       device_name(), cublasLtGetStatusString(code), cublasLtGetStatusName(code));
}

}  // namespace atl::compute::cuda
