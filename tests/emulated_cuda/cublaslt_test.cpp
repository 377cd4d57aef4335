// The emulated cuBLASLt against plain loops.

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Shape {
  std::int64_t m, n, k;
  bool transpose_a;
  int batch;
  cudaDataType_t out;
  std::uint32_t epilogue;
};

std::vector<std::uint16_t> random_bfloat16(std::size_t count, unsigned seed) {
  std::vector<std::uint16_t> values(count);
  for (auto& value : values) {
    seed = seed * 1664525U + 1013904223U;
    // Small multiples of 1/8: sums of products are exact in float32, whatever their order.
    const float x = static_cast<float>(static_cast<int>(seed >> 24U) % 17 - 8) / 8.0F;
    std::uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    value = static_cast<std::uint16_t>(bits >> 16U);
  }
  return values;
}

float as_float(std::uint16_t bfloat16) {
  const std::uint32_t bits = static_cast<std::uint32_t>(bfloat16) << 16U;
  float x = 0;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class T>
T* to_device(const std::vector<T>& values) {
  void* pointer = nullptr;
  EXPECT_EQ(cudaMalloc(&pointer, values.size() * sizeof(T)), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(pointer, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
            cudaSuccess);
  return static_cast<T*>(pointer);
}

/// Everything that a product needs, and its algorithms.
struct Plan {
  explicit Plan(const Shape& s) {
    EXPECT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
    cublasLtMatmulDescCreate(&description, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    const std::int32_t t = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    cublasLtMatmulDescSetAttribute(description, CUBLASLT_MATMUL_DESC_EPILOGUE, &s.epilogue,
                                   sizeof s.epilogue);
    const auto rows_a = static_cast<std::uint64_t>(s.transpose_a ? s.k : s.m);
    const auto columns_a = static_cast<std::uint64_t>(s.transpose_a ? s.m : s.k);
    a = layout(CUDA_R_16BF, rows_a, columns_a, s);
    b = layout(CUDA_R_16BF, static_cast<std::uint64_t>(s.k), static_cast<std::uint64_t>(s.n), s);
    d = layout(s.out, static_cast<std::uint64_t>(s.m), static_cast<std::uint64_t>(s.n), s);
    cublasLtMatmulPreferenceCreate(&preference);
    const std::uint64_t workspace_bytes = 32U << 20U;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace_bytes, sizeof workspace_bytes);
    algorithms.resize(8);
    int found = 0;
    EXPECT_EQ(cublasLtMatmulAlgoGetHeuristic(handle, description, a, b, d, d, preference, 8,
                                             algorithms.data(), &found),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_GT(found, 1);
    algorithms.resize(found);
  }
  ~Plan() {
    for (cublasLtMatrixLayout_t l : {a, b, d}) cublasLtMatrixLayoutDestroy(l);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatmulDescDestroy(description);
    cublasLtDestroy(handle);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  static cublasLtMatrixLayout_t layout(cudaDataType_t type, std::uint64_t rows,
                                       std::uint64_t columns, const Shape& s) {
    cublasLtMatrixLayout_t l = nullptr;
    cublasLtMatrixLayoutCreate(&l, type, rows, columns, static_cast<std::int64_t>(rows));
    const auto stride = static_cast<std::int64_t>(rows * columns);
    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &s.batch,
                                     sizeof s.batch);
    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                     sizeof stride);
    return l;
  }

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t description = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  std::vector<cublasLtMatmulHeuristicResult_t> algorithms;
};

/// The sum, before any activation.
float expected(const Shape& s, const std::vector<std::uint16_t>& a,
               const std::vector<std::uint16_t>& b, std::int64_t batch, std::int64_t i,
               std::int64_t j) {
  float sum = 0;
  for (std::int64_t l = 0; l < s.k; ++l) {
    const std::int64_t at = s.transpose_a ? i * s.k + l : l * s.m + i;
    sum += as_float(a[batch * s.m * s.k + at]) * as_float(b[batch * s.k * s.n + j * s.k + l]);
  }
  return sum;
}

float gelu(float x) {
  return 0.5F * x * (1 + std::tanh(0.79788456F * (x + 0.044715F * x * x * x)));
}

class Matmul : public testing::TestWithParam<Shape> {};

TEST_P(Matmul, EqualsPlainLoops) {
  const Shape s = GetParam();
  const auto a = random_bfloat16(static_cast<std::size_t>(s.batch * s.m * s.k), 1);
  const auto b = random_bfloat16(static_cast<std::size_t>(s.batch * s.k * s.n), 2);
  const auto count = static_cast<std::size_t>(s.batch * s.m * s.n);
  auto* da = to_device(a);
  auto* db = to_device(b);
  void* dd = to_device(std::vector<float>(count));
  void* workspace = to_device(std::vector<float>(8U << 20U));
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const Plan plan(s);
  for (const auto& algorithm : plan.algorithms) {
    const float one = 1;
    const float zero = 0;
    ASSERT_EQ(cublasLtMatmul(plan.handle, plan.description, &one, da, plan.a, db, plan.b, &zero, dd,
                             plan.d, dd, plan.d, &algorithm.algo, workspace,
                             algorithm.workspaceSize, stream),
              CUBLAS_STATUS_SUCCESS);
    std::vector<float> raw(count);
    ASSERT_EQ(cudaMemcpyAsync(raw.data(), dd, count * (s.out == CUDA_R_32F ? 4U : 2U),
                              cudaMemcpyDeviceToHost, stream),
              cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    for (std::size_t at = 0; at < count; ++at) {
      const auto i = static_cast<std::int64_t>(at);
      const float sum = expected(s, a, b, i / (s.m * s.n), i % s.m, i / s.m % s.n);
      const bool is_gelu = s.epilogue == CUBLASLT_EPILOGUE_GELU;
      const float want = is_gelu ? gelu(sum) : sum;
      const float got = s.out == CUDA_R_32F
                            ? raw[at]
                            : as_float(reinterpret_cast<const std::uint16_t*>(raw.data())[at]);
      // Without an activation sums are exact; bfloat16 rounds to 8 bits, tanh is good to 10 bits in
      // one algorithm and to a few ulp in the others.
      const float unit = s.out == CUDA_R_32F ? 1e-6F : 1.0F / 256;
      const float of_tanh = is_gelu ? std::abs(sum) / 2048 : 0;
      ASSERT_NEAR(got, want, unit * std::abs(want) + of_tanh + 1e-6F) << at;
    }
  }
  cudaStreamDestroy(stream);
  for (void* pointer : {static_cast<void*>(da), static_cast<void*>(db), dd, workspace})
    cudaFree(pointer);
}

INSTANTIATE_TEST_SUITE_P(Shapes, Matmul,
                         testing::Values(Shape{33, 1, 64, true, 1, CUDA_R_32F, 1},
                                         Shape{128, 70, 96, true, 1, CUDA_R_16BF, 1},
                                         Shape{17, 19, 23, false, 3, CUDA_R_32F, 1},
                                         Shape{64, 40, 200, true, 1, CUDA_R_16BF,
                                               CUBLASLT_EPILOGUE_GELU}));

void share_a_workspace() {
  const Shape s{32, 8, 16, true, 1, CUDA_R_32F, 1};
  auto* a = to_device(random_bfloat16(32 * 16, 1));
  auto* b = to_device(random_bfloat16(16 * 8, 2));
  void* d = to_device(std::vector<float>(32 * 8));
  void* workspace = to_device(std::vector<float>(8U << 20U));
  cudaStream_t streams[2] = {};
  for (cudaStream_t& stream : streams) cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  const Plan plan(s);
  const float one = 1;
  const float zero = 0;
  for (int i = 0; i < 200; ++i) {
    // Few columns of enough rows: it needs a workspace.
    const auto& algorithm = plan.algorithms.front();
    cublasLtMatmul(plan.handle, plan.description, &one, a, plan.a, b, plan.b, &zero, d, plan.d, d,
                   plan.d, &algorithm.algo, workspace, algorithm.workspaceSize, streams[i % 2]);
  }
  cudaDeviceSynchronize();
}

TEST(MatmulDeath, SharedWorkspaceIsNoticed) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(share_a_workspace(), "two streams share it");
}

}  // namespace
