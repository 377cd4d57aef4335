#pragma once
// Arrays in device memory, and a fixture that skips where there is no device. CUDA's runtime API
// only, so that the tests run on an emulated device too.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace atl::testing {

inline void expect_success(cudaError_t code) {
  ASSERT_EQ(code, cudaSuccess) << cudaGetErrorString(code);
}

/// `size` elements in device memory. What is not given is filled with 0xff: NaN as a float of any
/// type, so that a result that depends on it shows.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    expect_success(cudaMalloc(&data_, bytes() + 1));
    expect_success(cudaMemset(data_, 0xff, bytes() + 1));
    // Streams that the tests create do not wait for the default one.
    expect_success(cudaDeviceSynchronize());
  }
  // NOLINTNEXTLINE(google-explicit-constructor): tests pass vectors
  DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { set(values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  void set(const std::vector<T>& values) {
    expect_success(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice));
    expect_success(cudaDeviceSynchronize());
  }
  /// Waits for all work, then copies.
  std::vector<T> host() const {
    std::vector<T> values(size_);
    expect_success(cudaDeviceSynchronize());
    expect_success(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDeviceToHost));
    return values;
  }
  T* get() const { return static_cast<T*>(data_); }

 private:
  std::size_t bytes() const { return size_ * sizeof(T); }

  void* data_ = nullptr;
  std::size_t size_;
};

using DeviceBytes = DeviceArray<std::byte>;

/// Call in SetUp() of what needs a device.
inline void skip_without_device() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess || count == 0) {
    GTEST_SKIP() << "SKIPPED: no CUDA device ("
                 << (code == cudaSuccess ? "none found" : cudaGetErrorString(code)) << ")";
  }
}

}  // namespace atl::testing
