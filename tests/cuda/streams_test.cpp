// Streams' order against the host: the device's clock, and work that nobody will ask for.

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "compute/clock.hpp"
#include "compute/cuda/stream.hpp"
#include "tests/cuda/on_device.hpp"

namespace atl::testing {
namespace {

using compute::cuda::CudaEvent;
using compute::cuda::DeviceClock;
using compute::cuda::Stream;

class CudaStreams : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
};

TEST_F(CudaStreams, EachHasItsOwnQueueAndTheDeviceIsKnownByWhatItComputes) {
  unsetenv("CUDA_DEVICE_MAX_CONNECTIONS");
  compute::choose_cuda_device(0);
  EXPECT_STREQ(std::getenv("CUDA_DEVICE_MAX_CONNECTIONS"), "32");
  const compute::CudaDevice device = compute::open_cuda_device(0);
  EXPECT_TRUE(device.kind.starts_with(device.name)) << device.kind;
  for (const char* part : {"sm_", "cuBLASLt "}) {
    EXPECT_NE(device.kind.find(part), std::string::npos) << device.kind;
  }
}

/// An event that comes late, here since others' work is in its way, says nothing of the time.
TEST_F(CudaStreams, TheClockIsNotSetByAnEventThatCameLate) {
  using namespace std::chrono_literals;
  const Stream busy;
  const Stream asked;
  DeviceClock clock;
  const CudaEvent event(CudaEvent::Timing::on);
  for (int round = 0; round < 4; ++round) {
    std::this_thread::sleep_for(1100ms);  // it takes a newer base about once a second
    for (int i = 0; i < 20; ++i) {
      expect_success(cudaLaunchHostFunc(
          busy.raw(), [](void*) { std::this_thread::sleep_for(3ms); }, nullptr));
      clock.refresh();
    }
    expect_success(cudaDeviceSynchronize());
    const double before = now_seconds();
    event.record(asked);
    wait_for(event);
    const double after = now_seconds();
    EXPECT_GE(clock.seconds_of(event), before - 0.5e-3) << round;
    EXPECT_LE(clock.seconds_of(event), after + 0.5e-3) << round;
  }
}

/// Where an error ends a pass, what its operations write to goes.
TEST_F(CudaStreams, NothingIsWrittenAfterABackendHasSettled) {
  const auto model = random_model(tiny_shape(), DType::bfloat16, 6);
  SingleRank rank(model, on_cuda(DType::bfloat16));
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  const SingleRank::Piece piece{rank.add_sequence(), tokens};
  for (int round = 0; round < 5; ++round) {
    rank.set_chunk({&piece, 1});
    rank.backend().embed(rank.chunk());
    std::vector<float> x(std::size_t{3} * 48, -1);
    rank.backend().save_x(rank.chunk(), x.data());  // by a function of the host
    rank.backend().settle();
    EXPECT_NE(x.front(), -1);
    EXPECT_NE(x.back(), -1);
  }
}

}  // namespace
}  // namespace atl::testing
