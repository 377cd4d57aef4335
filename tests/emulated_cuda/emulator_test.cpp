// The emulated device itself: it computes what a GPU would, and it notices what it is there for.

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <mma.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <vector>

namespace {

using Bfloat16 = __nv_bfloat16;

void ok(cudaError_t code) {
  ASSERT_EQ(code, cudaSuccess) << cudaGetErrorString(code);
}

template <class... Parameters, class... Arguments>
cudaError_t run(cudaStream_t stream, void (*kernel)(Parameters...), unsigned blocks,
                unsigned threads, std::size_t shared, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

/// Device memory with what the host gave, and back.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) : size_(values.size()) {
    ok(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)));
    ok(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  explicit OnDevice(std::size_t size) : OnDevice(std::vector<T>(size, T{})) {}
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  operator T*() const { return data_; }  // NOLINT: as a kernel takes it
  std::vector<T> read() const {
    std::vector<T> values(size_);
    ok(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

struct Stream {
  Stream() { ok(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(handle); }
  operator cudaStream_t() const { return handle; }  // NOLINT
  cudaStream_t handle = nullptr;
};

struct Event {
  Event() { ok(cudaEventCreate(&handle)); }
  ~Event() { cudaEventDestroy(handle); }
  operator cudaEvent_t() const { return handle; }  // NOLINT
  cudaEvent_t handle = nullptr;
};

// ---- kernels ----

/// Reverses each block's part through shared memory.
template <bool with_barrier>
__global__ void reverse(int* data) {
  int* shared = static_cast<int*>(emulated::dynamic_shared_memory());
  int* mine = data + blockIdx.x * blockDim.x;
  shared[threadIdx.x] = mine[threadIdx.x];
  if (with_barrier) __syncthreads();
  mine[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void sum_warps(const float* in, float* out) {
  float x = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffU, x, lane);
  if (threadIdx.x % 32 == 0) atomicAdd(out + blockIdx.x, x);
}

__global__ void votes(unsigned* out) {
  const int lane = static_cast<int>(threadIdx.x);
  out[lane * 4] = __ballot_sync(0xffffffffU, lane % 3 == 0);
  out[lane * 4 + 1] = static_cast<unsigned>(__reduce_add_sync(0xffffffffU, lane));
  out[lane * 4 + 2] = static_cast<unsigned>(__shfl_up_sync(0xffffffffU, lane, 1));
  unsigned half = lane < 16 ? 0x0000ffffU : 0xffff0000U;
  out[lane * 4 + 3] = static_cast<unsigned>(__shfl_sync(half, lane, 3, 16));
}

__global__ void divergent() {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lost_lane() {
  if (threadIdx.x == 7) {
    __syncwarp(0x80U);
    __syncthreads();
  } else {
    __syncwarp();
  }
}

__global__ void past_the_end(int* data, int index) {
  data[index] = 1;
}

__global__ void fill(int* data, int value, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    data[i] = value;
}

__global__ void add_one(int* data, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    ++data[i];
}

/// c [16, 16] = a [16, 32] * b [32, 16], b by columns.
__global__ void product(const Bfloat16* a, const Bfloat16* b, float* c) {
  using namespace nvcuda;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0F);
  for (int k = 0; k < 32; k += 16) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, Bfloat16, wmma::row_major> fa;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, Bfloat16, wmma::col_major> fb;
    wmma::load_matrix_sync(fa, a + k, 32);
    wmma::load_matrix_sync(fb, b + k, 32);
    wmma::mma_sync(sum, fa, fb, sum);
  }
  wmma::store_matrix_sync(c, sum, 16, wmma::mem_row_major);
}

bool reversed(const std::vector<int>& data, int block) {
  for (int i = 0; i < static_cast<int>(data.size()); ++i)
    if (data[i] != i / block * block + block - 1 - i % block) return false;
  return true;
}

std::vector<int> counting(int n) {
  std::vector<int> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// ---- device code ----

TEST(Blocks, ExchangeThroughSharedMemory) {
  OnDevice<int> data(counting(640));
  ok(run(nullptr, reverse<true>, 5, 128, 128 * sizeof(int), static_cast<int*>(data)));
  EXPECT_TRUE(reversed(data.read(), 128));
}

TEST(Blocks, MissingBarrierShows) {
  OnDevice<int> data(counting(640));
  ok(run(nullptr, reverse<false>, 5, 128, 128 * sizeof(int), static_cast<int*>(data)));
  EXPECT_FALSE(reversed(data.read(), 128));
}

TEST(Blocks, CollectivesOfAWarp) {
  std::vector<float> values(256);
  std::iota(values.begin(), values.end(), 0.0F);
  OnDevice<float> in(values);
  OnDevice<float> out(2);
  ok(run(nullptr, sum_warps, 2, 128, 0, static_cast<float*>(in), static_cast<float*>(out)));
  EXPECT_EQ(out.read(), (std::vector<float>{8128.0F, 24512.0F}));

  OnDevice<unsigned> all(128);
  ok(run(nullptr, votes, 1, 32, 0, static_cast<unsigned*>(all)));
  const std::vector<unsigned> got = all.read();
  for (unsigned lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(got[lane * 4], 0x49249249U);
    EXPECT_EQ(got[lane * 4 + 1], 496U);
    EXPECT_EQ(got[lane * 4 + 2], lane == 0 ? 0U : lane - 1);
    EXPECT_EQ(got[lane * 4 + 3], lane / 16 * 16 + 3);
  }
}

TEST(Blocks, TensorCoreProduct) {
  std::vector<Bfloat16> a(16 * 32);
  std::vector<Bfloat16> b(32 * 16);
  for (int i = 0; i < 512; ++i) {
    a[i] = __float2bfloat16(static_cast<float>(i % 13 - 6));
    b[i] = __float2bfloat16(static_cast<float>(i % 7 - 3));
  }
  OnDevice<Bfloat16> da(a);
  OnDevice<Bfloat16> db(b);
  OnDevice<float> dc(256);
  ok(run(nullptr, product, 1, 32, 0, static_cast<const Bfloat16*>(da),
         static_cast<const Bfloat16*>(db), static_cast<float*>(dc)));
  const std::vector<float> c = dc.read();
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 16; ++column) {
      float expected = 0;
      for (int k = 0; k < 32; ++k)
        expected += __bfloat162float(a[row * 32 + k]) * __bfloat162float(b[column * 32 + k]);
      EXPECT_EQ(c[row * 16 + column], expected) << row << ',' << column;  // small integers: exact
    }
  }
}

TEST(Blocks, ImpossibleLaunchesAreRefused) {
  EXPECT_EQ(run(nullptr, divergent, 1, 2048, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(nullptr, divergent, 0, 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(nullptr, divergent, 1, 32, 100000), cudaErrorInvalidValue);
  ok(cudaFuncSetAttribute(add_one, cudaFuncAttributeMaxDynamicSharedMemorySize, 100000));
  OnDevice<int> data(1);
  ok(run(nullptr, add_one, 1, 32, 100000, static_cast<int*>(data), 1));
  EXPECT_EQ(data.read(), std::vector<int>{1});
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

// A process that has threads starts its death tests anew.
class BlocksDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(BlocksDeath, DivergenceIsNamed) {
  EXPECT_DEATH(
      {
        run(nullptr, divergent, 1, 64, 0);
        cudaDeviceSynchronize();
      },
      "__syncthreads .*emulator_test.*threads of the block have ended");
  EXPECT_DEATH(
      {
        run(nullptr, two_barriers, 1, 64, 0);
        cudaDeviceSynchronize();
      },
      "threads of the block wait at another one");
  EXPECT_DEATH(
      {
        run(nullptr, lost_lane, 1, 32, 0);
        cudaDeviceSynchronize();
      },
      "__syncwarp .*lanes of its mask did not come to the same place");
}

TEST_F(BlocksDeath, BadAccessesAreNamed) {
  EXPECT_DEATH(
      {
        OnDevice<int> data(100);
        run(nullptr, past_the_end, 1, 1, 0, static_cast<int*>(data), 130);
        cudaDeviceSynchronize();
      },
      "kernel launched in .*touched byte 520 of a device allocation of 400 bytes|AddressSanitizer");
  EXPECT_DEATH(
      {
        int* data = nullptr;
        cudaMalloc(reinterpret_cast<void**>(&data), 400);
        cudaFree(data);
        run(nullptr, past_the_end, 1, 1, 0, data, 0);
        cudaDeviceSynchronize();
      },
      "touched byte 0 of a freed device allocation|AddressSanitizer");
}

// ---- streams ----

/// Fills in one stream, adds in another; what the sum is where nothing orders them.
int fill_then_add(bool with_event) {
  constexpr int count = 64;
  OnDevice<int> data(count);
  Stream a;
  Stream b;
  Event filled;
  ok(run(a, fill, 1, 32, 0, static_cast<int*>(data), 41, count));
  ok(cudaEventRecord(filled, a));
  if (with_event) ok(cudaStreamWaitEvent(b, filled, 0));
  ok(run(b, add_one, 1, 32, 0, static_cast<int*>(data), count));
  ok(cudaStreamSynchronize(b));
  ok(cudaStreamSynchronize(a));
  return data.read()[count - 1];
}

TEST(Streams, MissingEventShows) {
  int wrong = 0;
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(fill_then_add(true), 42);
    wrong += static_cast<int>(fill_then_add(false) != 42);
  }
  EXPECT_GT(wrong, 5);
}

TEST(Streams, CopiesReadTheHostLate) {
  int late = 0;
  Stream stream;
  OnDevice<int> data(16);
  int* host = nullptr;
  ok(cudaHostAlloc(reinterpret_cast<void**>(&host), 16 * sizeof(int), 0));
  for (int i = 0; i < 50; ++i) {
    std::fill(host, host + 16, 1);
    ok(cudaMemcpyAsync(data, host, 16 * sizeof(int), cudaMemcpyHostToDevice, stream));
    std::fill(host, host + 16, 2);  // too early: the copy may not have run
    ok(cudaStreamSynchronize(stream));
    late += static_cast<int>(data.read()[0] == 2);
  }
  EXPECT_GT(late, 5);
  ok(cudaFreeHost(host));
}

TEST(Streams, EventsTellWhatIsDone) {
  Stream stream;
  OnDevice<int> data(1);
  Event begin;
  Event end;
  EXPECT_EQ(cudaEventQuery(begin), cudaSuccess);  // never recorded
  ok(cudaEventRecord(begin, stream));
  for (int i = 0; i < 20; ++i) ok(run(stream, add_one, 1, 1, 0, static_cast<int*>(data), 1));
  ok(cudaEventRecord(end, stream));
  int not_ready = 0;
  while (cudaEventQuery(end) == cudaErrorNotReady) ++not_ready;
  EXPECT_GT(not_ready, 0);
  float ms = -1;
  ok(cudaEventElapsedTime(&ms, begin, end));
  EXPECT_GE(ms, 0);
  EXPECT_EQ(data.read()[0], 20);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST(Streams, HostFunctionsRunInOrderAndMayNotCallCuda) {
  struct Seen {
    int value = 0;
    cudaError_t inside = cudaSuccess;
  } seen;
  Stream stream;
  OnDevice<int> data(1);
  int* host = nullptr;
  ok(cudaMallocHost(reinterpret_cast<void**>(&host), sizeof(int)));
  ok(run(stream, add_one, 1, 1, 0, static_cast<int*>(data), 1));
  ok(cudaMemcpyAsync(host, data, sizeof(int), cudaMemcpyDeviceToHost, stream));
  std::pair<Seen*, int*> both{&seen, host};
  ok(cudaLaunchHostFunc(
      stream,
      [](void* argument) {
        auto [to, from] = *static_cast<std::pair<Seen*, int*>*>(argument);
        to->value = *from;
        to->inside = cudaStreamQuery(nullptr);
      },
      &both));
  ok(cudaStreamSynchronize(stream));
  EXPECT_EQ(seen.value, 1);
  EXPECT_EQ(seen.inside, cudaErrorNotPermitted);
  ok(cudaFreeHost(host));
}

TEST(Streams, WorkRunsWhileTheHostIsSilent) {
  static std::atomic<bool> ran{false};
  Stream stream;
  ok(cudaLaunchHostFunc(
      stream, [](void*) { ran = true; }, nullptr));
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!ran && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(ran);
}

TEST(Streams, CapturedWorkRunsWithEachLaunch) {
  Stream a;
  Stream b;
  Event fork;
  Event join;
  OnDevice<int> data(64);
  OnDevice<int> other(64);
  ok(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
  ok(run(a, add_one, 1, 32, 0, static_cast<int*>(data), 64));
  ok(cudaEventRecord(fork, a));
  ok(cudaStreamWaitEvent(b, fork, 0));
  ok(cudaMemcpyAsync(other, data, 64 * sizeof(int), cudaMemcpyDeviceToDevice, b));
  ok(cudaEventRecord(join, b));
  ok(cudaStreamWaitEvent(a, join, 0));
  ok(run(a, add_one, 1, 32, 0, static_cast<int*>(data), 64));
  void* refused = nullptr;
  EXPECT_EQ(cudaMalloc(&refused, 16), cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  ok(cudaStreamEndCapture(a, &graph));
  cudaGraphExec_t exec = nullptr;
  ok(cudaGraphInstantiate(&exec, graph, 0));
  ok(cudaGraphDestroy(graph));
  for (int i = 0; i < 3; ++i) ok(cudaGraphLaunch(exec, a));
  ok(cudaStreamSynchronize(a));
  ok(cudaGraphExecDestroy(exec));
  EXPECT_EQ(data.read()[63], 6);
  EXPECT_EQ(other.read()[63], 5);

  ok(cudaStreamBeginCapture(a, cudaStreamCaptureModeRelaxed));
  ok(cudaEventRecord(fork, a));
  ok(cudaStreamWaitEvent(b, fork, 0));
  ok(run(b, add_one, 1, 32, 0, static_cast<int*>(data), 64));
  EXPECT_EQ(cudaStreamEndCapture(a, &graph), cudaErrorStreamCaptureUnjoined);
  cudaGetLastError();
}

TEST(Memory, BadCopiesAndFullDevicesAreRefused) {
  OnDevice<int> data(16);
  std::vector<int> host(64);
  EXPECT_EQ(cudaMemcpy(data, host.data(), 65, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(host.data(), host.data() + 32, 4, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
  std::size_t free = 0;
  std::size_t total = 0;
  ok(cudaMemGetInfo(&free, &total));
  EXPECT_EQ(total - free, 256U);
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, free + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(pointer, nullptr);
  cudaPointerAttributes attributes{};
  ok(cudaPointerGetAttributes(&attributes, data + 3));
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  ok(cudaPointerGetAttributes(&attributes, host.data()));
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  cudaGetLastError();
}

// ---- settings: each needs a process that starts with them ----

class SettingsDeath : public BlocksDeath {};

/// Runs in a child with the variable set; it ends with code 0 if `body` holds.
#define EXPECT_WITH(NAME, VALUE, BODY)                                                      \
  setenv(NAME, VALUE, 1);                                                                   \
  EXPECT_EXIT(std::exit([&]() -> bool { BODY }() ? 0 : 1), testing::ExitedWithCode(0), ""); \
  unsetenv(NAME)

TEST_F(SettingsDeath, DevicesAndFailuresAsAsked) {
  EXPECT_WITH("ATL_EMULATED_DEVICES", "0", {
    int count = 7;
    void* pointer = nullptr;
    return cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0 &&
           cudaMalloc(&pointer, 16) == cudaErrorNoDevice;
  });
  EXPECT_WITH("ATL_EMULATED_CAPABILITY", "7.5", {
    cudaDeviceProp properties{};
    return cudaGetDeviceProperties(&properties, 0) == cudaSuccess && properties.major == 7 &&
           properties.minor == 5;
  });
  EXPECT_WITH("ATL_EMULATED_FAIL", "cudaMalloc:2:2", {
    void* pointer = nullptr;
    return cudaMalloc(&pointer, 16) == cudaSuccess &&
           cudaMalloc(&pointer, 16) == cudaErrorMemoryAllocation &&
           cudaMalloc(&pointer, 16) == cudaSuccess;
  });
  EXPECT_WITH("ATL_EMULATED_FAIL", "kernel:2:719", {
    void* pointer = nullptr;
    cudaMalloc(&pointer, 16);
    for (int i = 0; i < 3; ++i) run(nullptr, add_one, 1, 1, 0, static_cast<int*>(pointer), 1);
    return cudaDeviceSynchronize() == cudaErrorLaunchFailure &&
           cudaMalloc(&pointer, 16) == cudaErrorLaunchFailure &&
           cudaGetLastError() == cudaErrorLaunchFailure;
  });
}

TEST_F(SettingsDeath, HostCodeThatTouchesDeviceMemoryCrashes) {
  setenv("ATL_EMULATED_PROTECT", "1", 1);
  EXPECT_DEATH(
      {
        OnDevice<int> data(16);
        run(nullptr, add_one, 1, 1, 0, static_cast<int*>(data), 16);  // a kernel may
        ok(cudaDeviceSynchronize());
        std::fprintf(stderr, "as far as here\n");
        volatile int* direct = data;
        direct[3] = 1;
      },
      "as far as here\n(.|\n)*(host code touched byte 12 of a device allocation of 64 bytes)");
  unsetenv("ATL_EMULATED_PROTECT");
}

}  // namespace
