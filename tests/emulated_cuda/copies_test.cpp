// Asynchronous copies to shared memory: they are there when a thread has waited for their group,
// and no earlier.

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <vector>

namespace {

constexpr int num_slots = 3;
constexpr int num_pieces = 7;

/// Copies pieces of 4 ints, one a group, through a ring of slots, and reads each after `Pending`
/// groups may still be under way.
template <int Pending>
__global__ void through_a_ring(const int* in, int* out) {
  auto* ring = static_cast<int*>(emulated::dynamic_shared_memory());
  const auto start = [&](int piece) {
    if (piece < num_pieces) {
      emulated::copy_async(ring + piece % num_slots * 4, piece == 3 ? nullptr : in + piece * 4, 16);
    }
    emulated::commit_copies();
  };
  for (int piece = 0; piece < num_slots - 1; ++piece) start(piece);
  for (int piece = 0; piece < num_pieces; ++piece) {
    emulated::wait_copies(Pending);
    for (int i = 0; i < 4; ++i) out[piece * 4 + i] = ring[piece % num_slots * 4 + i];
    start(piece + num_slots - 1);
  }
}

template <int Pending>
std::vector<int> run() {
  std::vector<int> in(num_pieces * 4);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i) + 1;
  const std::size_t bytes = in.size() * sizeof(int);
  int* from = nullptr;
  int* to = nullptr;
  EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&from), bytes), cudaSuccess);
  EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&to), bytes), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(from, in.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(1);
  config.dynamicSmemBytes = num_slots * 16;
  const int* const source = from;
  EXPECT_EQ(cudaLaunchKernelEx(&config, through_a_ring<Pending>, source, to), cudaSuccess);
  std::vector<int> out(in.size());
  EXPECT_EQ(cudaMemcpy(out.data(), to, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
  cudaFree(from);
  cudaFree(to);
  return out;
}

TEST(Copies, AreThereOnceTheirGroupWasAwaited) {
  const std::vector<int> out = run<num_slots - 2>();
  for (int i = 0; i < num_pieces * 4; ++i) {
    EXPECT_EQ(out[static_cast<std::size_t>(i)], i / 4 == 3 ? 0 : i + 1) << i;
  }
}

TEST(Copies, TooFewAwaitedGroupsShow) {
  const std::vector<int> out = run<num_slots - 1>();
  for (const int value : out) EXPECT_EQ(value, -1);
}

}  // namespace
