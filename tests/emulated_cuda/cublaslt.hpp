#pragma once
// What the opaque descriptors of the emulated cuBLASLt hold.

#include <cublasLt.h>

#include <cstdint>
#include <cstring>

#include "tests/emulated_cuda/queue.hpp"
#include "tests/emulated_cuda/settings.hpp"

namespace emulated {

struct Description {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  std::int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST;
  std::int32_t transpose_a = CUBLAS_OP_N;
  std::int32_t transpose_b = CUBLAS_OP_N;
  std::uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  std::int32_t bias_type = -1;
};

struct Layout {
  std::uint32_t type = CUDA_R_32F;
  std::int32_t order = CUBLASLT_ORDER_COL;
  std::uint64_t rows = 0;
  std::uint64_t columns = 0;
  std::int64_t leading = 0;
  std::int32_t batch = 1;
  std::int64_t batch_stride = 0;
};

struct Preference {
  std::uint64_t max_workspace = 0;
  std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_MASK;  // allowed, beside none
  std::uint32_t min_alignment[4] = {256, 256, 256, 256};      // of A, B, C and D
};

struct Algorithm {
  std::int32_t id = 0;
  std::int32_t splits = 1;
  std::uint64_t workspace = 0;
  std::uint32_t alignment[4] = {16, 16, 16, 16};  // what it assumes of A, B, C and D
  std::uint64_t made_for = 0;  // types, transpositions and epilogue of the problem it came from

  /// Whether parts of a sum are made by different blocks and added afterwards.
  bool reduces() const { return id == 2 || id == 3; }
};

static_assert(sizeof(Description) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

template <class Mine, class Opaque>
Mine read(const Opaque* opaque) {
  Mine mine;
  std::memcpy(static_cast<void*>(&mine), opaque, sizeof mine);
  return mine;
}
template <class Opaque, class Mine>
void write(Opaque* opaque, const Mine& mine) {
  std::memset(opaque, 0, sizeof *opaque);
  std::memcpy(opaque, &mine, sizeof mine);
}

/// Runs the body of a function of cuBLASLt under the rules of every call.
template <class Body>
cublasStatus_t lt_call(const char* name, Body&& body) {
  if (const int code = emulated::injected_failure(name); code != 0)
    return static_cast<cublasStatus_t>(code);
  emulated::Call guard("cublasLt");
  if (guard.status() == cudaErrorNoDevice) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (guard.status() != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  return body();
}

}  // namespace emulated
