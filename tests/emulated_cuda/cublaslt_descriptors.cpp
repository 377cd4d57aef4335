// Making and changing the descriptors of the emulated cuBLASLt.

#include <map>

#include "tests/emulated_cuda/cublaslt.hpp"

using emulated::Description;
using emulated::Layout;
using emulated::lt_call;
using emulated::Preference;
using emulated::read;
using emulated::write;

struct cublasLtContext {};

namespace {

template <class T>
cublasStatus_t set(T& field, const void* from, std::size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, from, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t* handle) {
  return lt_call("cublasLtCreate", [&] {
    *handle = new cublasLtContext;
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

size_t CUBLASWINAPI cublasLtGetVersion() {
  return 130100;
}

const char* CUBLASWINAPI cublasLtGetStatusName(cublasStatus_t status) {
  static const std::map<cublasStatus_t, const char*> names = {
      {CUBLAS_STATUS_SUCCESS, "CUBLAS_STATUS_SUCCESS"},
      {CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED"},
      {CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED"},
      {CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE"},
      {CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH"},
      {CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED"},
      {CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR"},
      {CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED"}};
  const auto found = names.find(status);
  return found == names.end() ? "unknown status" : found->second;
}

const char* CUBLASWINAPI cublasLtGetStatusString(cublasStatus_t status) {
  return cublasLtGetStatusName(status);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t description,
                                                            size_t, cublasComputeType_t compute,
                                                            cudaDataType_t scale) {
  Description d;
  d.compute = compute;
  d.scale = scale;
  write(description, d);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description,
                                                     cublasComputeType_t compute,
                                                     cudaDataType_t scale) {
  *description = new cublasLtMatmulDescOpaque_t;
  return cublasLtMatmulDescInit_internal(*description, sizeof **description, compute, scale);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                                           cublasLtMatmulDescAttributes_t attribute,
                                                           const void* from, size_t bytes) {
  auto d = read<Description>(description);
  cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      status = set(d.transpose_a, from, bytes);
      break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
      status = set(d.transpose_b, from, bytes);
      break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      status = set(d.epilogue, from, bytes);
      break;
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      status = set(d.pointer_mode, from, bytes);
      break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      status = set(d.bias, from, bytes);
      break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      status = set(d.bias_type, from, bytes);
      break;
    case CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET:
      status = CUBLAS_STATUS_SUCCESS;
      break;
    default:
      break;
  }
  write(description, d);
  return status;
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t,
                                                              cudaDataType type, uint64_t rows,
                                                              uint64_t columns, int64_t leading) {
  Layout l;
  l.type = static_cast<std::uint32_t>(type);
  l.rows = rows;
  l.columns = columns;
  l.leading = leading;
  write(layout, l);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout,
                                                       cudaDataType type, uint64_t rows,
                                                       uint64_t columns, int64_t leading) {
  *layout = new cublasLtMatrixLayoutOpaque_t;
  return cublasLtMatrixLayoutInit_internal(*layout, sizeof **layout, type, rows, columns, leading);
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutSetAttribute(
    cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void* from,
    size_t bytes) {
  auto l = read<Layout>(layout);
  cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      status = set(l.type, from, bytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      status = set(l.order, from, bytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      status = set(l.rows, from, bytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      status = set(l.columns, from, bytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_LD:
      status = set(l.leading, from, bytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      status = set(l.batch, from, bytes);
      break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      status = set(l.batch_stride, from, bytes);
      break;
    default:
      break;
  }
  write(layout, l);
  return status;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t p,
                                                                  size_t) {
  write(p, Preference{});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* p) {
  *p = new cublasLtMatmulPreferenceOpaque_t;
  return cublasLtMatmulPreferenceInit_internal(*p, sizeof **p);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) {
  delete p;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
    const void* from, size_t bytes) {
  auto p = read<Preference>(preference);
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;  // what else there is only narrows the choice
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      status = set(p.max_workspace, from, bytes);
      break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      status = set(p.reductions, from, bytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      status = set(p.min_alignment[0], from, bytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      status = set(p.min_alignment[1], from, bytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      status = set(p.min_alignment[2], from, bytes);
      break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      status = set(p.min_alignment[3], from, bytes);
      break;
    default:
      break;
  }
  write(preference, p);
  return status;
}
