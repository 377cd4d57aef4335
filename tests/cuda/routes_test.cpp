// timeout: 480
// Every layout, placement and route gives the bytes that one rank alone gives, on CUDA too.

#include "compute/cuda/backend.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/route_checks.hpp"

namespace atl::testing {
namespace {

HowRanksRun on_one_device() {
  HowRanksRun how;
  how.make_backend = [](const compute::BackendOptions& options) {
    return compute::make_cuda_backend(options, {compute::open_cuda_device(0), 1, 0});
  };
  how.copy = [](void* to, const void* from, std::size_t bytes) {
    expect_success(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice));
    expect_success(cudaDeviceSynchronize());  // backends' streams do not wait for such copies
  };
  return how;
}

class CudaRoutes : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { skip_without_device(); }
};

TEST_P(CudaRoutes, BytesAreThoseOfOneRank) {
  const ModelShape shape = tiny_shape();
  for (const auto& sizes : std::vector<std::vector<int>>{{3}, {2, 2}, {2, 3, 1}, {1, 1, 5}}) {
    const Layout layout = layout_of_nodes(sizes);
    expect_bytes_of_one_rank(shape, layout, even_placement(shape, layout), GetParam(),
                             on_one_device());
  }
}

TEST_P(CudaRoutes, AnyPlacementAndReplicas) {
  for (unsigned seed = 0; seed < 4; ++seed) {
    ModelShape shape = tiny_shape();
    shape.top_k = 1 + static_cast<int>(seed);
    const Layout layout = seed % 2 == 0 ? make_layout({0, 1, 1, 0, 1}) : layout_of_nodes({2, 2, 1});
    expect_bytes_of_one_rank(shape, layout, random_placement(shape, layout, seed), GetParam(),
                             on_one_device());
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaRoutes,
                         ::testing::Values(DType::float32, DType::bfloat16, DType::float16),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace atl::testing
