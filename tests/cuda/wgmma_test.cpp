// Whether a device's warpgroups may be taken for attention: it is asked, and the environment.

#include "compute/cuda/wgmma.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

#include "compute/cuda/backend.hpp"
#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/error.hpp"
#include "tests/cuda/device_memory.hpp"

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;

class CudaWgmma : public ::testing::Test {
 protected:
  void SetUp() override { skip_without_device(); }
  void TearDown() override { unsetenv("ATOLL_ATTENTION"); }
};

TEST_F(CudaWgmma, HopperAnswersAsExpected) {
  cudaDeviceProp properties{};
  expect_success(cudaGetDeviceProperties(&properties, 0));
  if (properties.major != 9 || properties.minor != 0) {
    EXPECT_EQ(cuda::why_no_wgmma(), "only compute capability 9.0 has wgmma");
    return;
  }
  EXPECT_EQ(cuda::wrong_wgmma_answers(), 0);
  EXPECT_EQ(cuda::why_no_wgmma(), "");
}

TEST_F(CudaWgmma, TheEnvironmentChooses) {
  const std::string why = cuda::why_no_wgmma();
  EXPECT_EQ(cuda::why_no_chosen_wgmma(), why);
  EXPECT_EQ(compute::open_cuda_device(0).why_no_wgmma, why);
  setenv("ATOLL_ATTENTION", "mma", 1);
  EXPECT_EQ(cuda::why_no_chosen_wgmma(), "ATOLL_ATTENTION is mma");
  setenv("ATOLL_ATTENTION", "wgmma", 1);
  if (why.empty()) {
    EXPECT_EQ(cuda::why_no_chosen_wgmma(), "");
  } else {
    EXPECT_THROW(cuda::why_no_chosen_wgmma(), Error);
  }
  setenv("ATOLL_ATTENTION", "tensor", 1);
  EXPECT_THROW(cuda::why_no_chosen_wgmma(), Error);
}

TEST_F(CudaWgmma, TakesLayersThatItHasKernelsFor) {
  ModelShape shape;
  shape.num_heads = shape.num_kv_heads = 4;
  shape.head_dim = 128;
  EXPECT_TRUE(cuda::wgmma_attends(shape, DType::bfloat16));
  EXPECT_TRUE(cuda::wgmma_attends(shape, DType::float16));
  EXPECT_FALSE(cuda::wgmma_attends(shape, DType::float32));
  shape.head_dim = 512;
  EXPECT_TRUE(cuda::wgmma_attends(shape, DType::bfloat16));
  shape.head_dim = 20;
  EXPECT_FALSE(cuda::wgmma_attends(shape, DType::bfloat16)) << "rows of other than 16-byte pieces";
  shape.head_dim = 64;
  shape.value_dim = 32;
  EXPECT_FALSE(cuda::wgmma_attends(shape, DType::bfloat16)) << "values unlike keys";
  shape.value_dim = 0;
  cuda::AttendedHeads heads(shape);
  EXPECT_TRUE(cuda::wgmma_attends(heads, DType::bfloat16));
  heads.window = 128;
  EXPECT_FALSE(cuda::wgmma_attends(heads, DType::bfloat16)) << "a window";
  heads.window = 0;
  heads.sinks = true;
  EXPECT_FALSE(cuda::wgmma_attends(heads, DType::bfloat16)) << "sinks";
}

}  // namespace
}  // namespace atl::testing
