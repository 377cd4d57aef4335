// cuBLASLt for the emulated device: what a program needs of it for products of bfloat16, float16 or
// float32 matrices with float32 sums. Its algorithms differ in the workspace they need and in the
// order in which they sum, as the real ones do.

#include <cublasLt.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "tests/emulated_cuda/gemm.hpp"
#include "tests/emulated_cuda/memory.hpp"
#include "tests/emulated_cuda/queue.hpp"
#include "tests/emulated_cuda/settings.hpp"

struct cublasLtContext {};

namespace {

using emulated::Gemm;
using emulated::Place;

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
  std::uint32_t min_alignment[4] = {256, 256, 256, 256};  // of A, B, C and D
};

struct Algorithm {
  std::int32_t id = 0;
  std::int32_t splits = 1;
  std::uint64_t workspace = 0;
  std::uint32_t alignment[4] = {16, 16, 16, 16};  // what it assumes of A, B, C and D
  std::uint64_t made_for = 0;  // types, transpositions and epilogue of the problem it came from
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

template <class T>
cublasStatus_t set(T& field, const void* from, std::size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, from, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

template <class T>
cublasStatus_t get(const T& field, void* to, std::size_t bytes, std::size_t* written) {
  if (written != nullptr) *written = sizeof(T);
  if (bytes == 0) return CUBLAS_STATUS_SUCCESS;
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, &field, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

/// One problem as cublasLtMatmul and the heuristic see it.
struct Problem {
  Description description;
  Layout a, b, c, d;
  std::int64_t m = 0, n = 0, k = 0;

  std::uint64_t signature() const {
    std::uint64_t s = a.type;
    for (const std::uint64_t part :
         {std::uint64_t{b.type}, std::uint64_t{c.type}, std::uint64_t{d.type},
          static_cast<std::uint64_t>(description.transpose_a),
          static_cast<std::uint64_t>(description.transpose_b), std::uint64_t{description.epilogue}})
      s = s * 1021 + part;
    return s;
  }
};

std::int64_t strides_needed(const Layout& l) {
  return static_cast<std::int64_t>(l.order == CUBLASLT_ORDER_ROW ? l.columns : l.rows);
}

cublasStatus_t describe(Problem& p, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
                        cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                        cublasLtMatrixLayout_t d) {
  if (description == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  p = {read<Description>(description), read<Layout>(a), read<Layout>(b), read<Layout>(c),
       read<Layout>(d)};
  const bool ta = p.description.transpose_a != CUBLAS_OP_N;
  const bool tb = p.description.transpose_b != CUBLAS_OP_N;
  p.m = static_cast<std::int64_t>(ta ? p.a.columns : p.a.rows);
  p.k = static_cast<std::int64_t>(ta ? p.a.rows : p.a.columns);
  p.n = static_cast<std::int64_t>(tb ? p.b.rows : p.b.columns);
  const auto inner = static_cast<std::int64_t>(tb ? p.b.columns : p.b.rows);
  const auto is = [&](const Layout& l) {
    return static_cast<std::int64_t>(l.rows) == p.m && static_cast<std::int64_t>(l.columns) == p.n;
  };
  if (inner != p.k || !is(p.c) || !is(p.d)) return CUBLAS_STATUS_INVALID_VALUE;
  if (p.m == 0 || p.n == 0 || p.k == 0) return CUBLAS_STATUS_INVALID_VALUE;
  for (const Layout* l : {&p.a, &p.b, &p.c, &p.d}) {
    if (emulated::element_bytes(static_cast<cudaDataType_t>(l->type)) == 0 ||
        (l->order != CUBLASLT_ORDER_COL && l->order != CUBLASLT_ORDER_ROW))
      return CUBLAS_STATUS_NOT_SUPPORTED;
    if (l->leading < strides_needed(*l) || l->batch != p.a.batch)
      return CUBLAS_STATUS_INVALID_VALUE;
  }
  const bool plain_sums = p.description.compute == CUBLAS_COMPUTE_32F ||
                          p.description.compute == CUBLAS_COMPUTE_32F_PEDANTIC ||
                          p.description.compute == CUBLAS_COMPUTE_32F_FAST_TF32 ||
                          p.description.compute == CUBLAS_COMPUTE_32F_FAST_16BF;
  const std::uint32_t known = CUBLASLT_EPILOGUE_GELU_BIAS | CUBLASLT_EPILOGUE_RELU_BIAS | 1U;
  if (!plain_sums || p.description.scale != CUDA_R_32F || p.a.type != p.b.type ||
      p.c.type != p.d.type || (p.description.epilogue & ~known) != 0)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

emulated::Matrix matrix(const Layout& l, bool transposed) {
  const bool rows_apart = (l.order == CUBLASLT_ORDER_ROW) != transposed;
  return {nullptr, static_cast<cudaDataType_t>(l.type), rows_apart ? l.leading : 1,
          rows_apart ? 1 : l.leading};
}

std::size_t bytes_of(const Layout& l) {
  const auto lines = static_cast<std::int64_t>(l.order == CUBLASLT_ORDER_ROW ? l.rows : l.columns);
  const std::int64_t elements =
      (l.batch - 1) * l.batch_stride + (lines - 1) * l.leading + strides_needed(l);
  return static_cast<std::size_t>(elements *
                                  emulated::element_bytes(static_cast<cudaDataType_t>(l.type)));
}

/// False, with a message, unless the whole operand is device memory, aligned as was promised.
bool usable(const char* name, const void* pointer, std::size_t bytes, std::uint32_t alignment) {
  const char* why = nullptr;
  if (emulated::place_of(pointer, bytes) != Place::device) why = "is not within device memory";
  if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0)
    why = "is not aligned as the algorithm's preference said";
  if (why != nullptr)
    std::fprintf(stderr, "emulated CUDA: cublasLtMatmul: %s (%zu bytes at %p) %s\n", name, bytes,
                 pointer, why);
  return why == nullptr;
}

Gemm make_gemm(const Problem& p, const Algorithm& algorithm) {
  Gemm g;
  g.m = p.m;
  g.n = p.n;
  g.k = p.k;
  g.a = matrix(p.a, p.description.transpose_a != CUBLAS_OP_N);
  g.b = matrix(p.b, p.description.transpose_b != CUBLAS_OP_N);
  g.c = matrix(p.c, false);
  g.d = matrix(p.d, false);
  if ((p.description.epilogue & CUBLASLT_EPILOGUE_BIAS) != 0) g.bias = p.description.bias;
  g.bias_type = static_cast<cudaDataType_t>(
      p.description.bias_type < 0 ? static_cast<std::int32_t>(p.d.type) : p.description.bias_type);
  if ((p.description.epilogue & CUBLASLT_EPILOGUE_GELU) != 0)
    g.activation = emulated::Activation::gelu_tanh;
  if ((p.description.epilogue & CUBLASLT_EPILOGUE_RELU) != 0)
    g.activation = emulated::Activation::relu;
  g.splits = algorithm.splits;
  return g;
}

const void* advance(const void* data, const Layout& l, int batch) {
  return static_cast<const std::byte*>(data) +
         batch * l.batch_stride * emulated::element_bytes(static_cast<cudaDataType_t>(l.type));
}

std::uint64_t next_ticket() {
  static std::uint64_t ticket = 0;
  return ++ticket;
}

/// A real algorithm keeps partial sums in its workspace while it runs. This one leaves a ticket
/// there and looks for it in a second piece of work, between which other streams may run.
cudaError_t enqueue_workspace(cudaStream_t stream, const Algorithm& algorithm, void* workspace,
                              std::uint64_t ticket) {
  if (algorithm.workspace == 0) return cudaSuccess;
  return emulated::enqueue(stream, "workspace",
                           [=] { std::memcpy(workspace, &ticket, sizeof ticket); });
}

void check_workspace(const Algorithm& algorithm, const void* workspace, std::uint64_t ticket) {
  if (algorithm.workspace == 0) return;
  std::uint64_t found = 0;
  std::memcpy(&found, workspace, sizeof found);
  if (found == ticket) return;
  std::fprintf(stderr,
               "emulated CUDA: the workspace of a cublasLtMatmul was written to while the "
               "product was computed: two streams share it\n");
  std::abort();
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

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
    cublasLtMatmulPreference_t preference, int requested, cublasLtMatmulHeuristicResult_t* results,
    int* returned) {
  *returned = 0;
  return lt_call("cublasLtMatmulAlgoGetHeuristic", [&] {
    Problem p;
    if (const cublasStatus_t s = describe(p, description, a, b, c, d); s != CUBLAS_STATUS_SUCCESS)
      return s;
    const auto wanted = preference == nullptr ? Preference{} : read<Preference>(preference);
    // Few columns: split sums first, as they fill a device better.
    static constexpr std::int32_t splits[] = {1, 1, 2, 4};
    static constexpr std::uint64_t workspaces[] = {0, 1U << 20U, 4U << 20U, 16U << 20U};
    static constexpr std::int32_t wide[] = {1, 0, 2, 3};
    static constexpr std::int32_t narrow[] = {2, 3, 0, 1};
    for (const std::int32_t id : p.n < 64 ? narrow : wide) {
      if (*returned == requested || workspaces[id] > wanted.max_workspace) continue;
      Algorithm algorithm{id, splits[id], workspaces[id], {}, p.signature()};
      for (int i = 0; i < 4; ++i)
        algorithm.alignment[i] = std::min<std::uint32_t>(wanted.min_alignment[i], 16);
      cublasLtMatmulHeuristicResult_t& result = results[(*returned)++];
      result = {};
      write(&result.algo, algorithm);
      result.workspaceSize = algorithm.workspace;
      result.state = CUBLAS_STATUS_SUCCESS;
      result.wavesCount = 1;
    }
    return *returned == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void* alpha, const void* a,
    cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
    const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
    cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
    size_t workspace_bytes, cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  return lt_call("cublasLtMatmul", [&] {
    Problem p;
    if (const cublasStatus_t s = describe(p, description, a_layout, b_layout, c_layout, d_layout);
        s != CUBLAS_STATUS_SUCCESS)
      return s;
    if (alpha == nullptr || beta == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    const Algorithm algorithm = algo == nullptr
                                    ? Algorithm{0, 1, 0, {16, 16, 16, 16}, p.signature()}
                                    : read<Algorithm>(algo);
    if (algorithm.made_for != p.signature()) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (algorithm.workspace > workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
    const bool host_scale = p.description.pointer_mode == CUBLASLT_POINTER_MODE_HOST;
    const float beta_now = host_scale ? *static_cast<const float*>(beta) : 1;
    if (!usable("A", a, bytes_of(p.a), algorithm.alignment[0]) ||
        !usable("B", b, bytes_of(p.b), algorithm.alignment[1]) ||
        (beta_now != 0 && !usable("C", c, bytes_of(p.c), algorithm.alignment[2])) ||
        !usable("D", d, bytes_of(p.d), algorithm.alignment[3]) ||
        (algorithm.workspace != 0 && !usable("workspace", workspace, workspace_bytes, 16)))
      return CUBLAS_STATUS_INVALID_VALUE;
    Gemm gemm = make_gemm(p, algorithm);
    if (host_scale) {
      gemm.alpha = *static_cast<const float*>(alpha);
      gemm.beta = beta_now;
    }
    const std::uint64_t ticket = next_ticket();
    if (enqueue_workspace(stream, algorithm, workspace, ticket) != cudaSuccess)
      return CUBLAS_STATUS_EXECUTION_FAILED;
    const cudaError_t status = emulated::enqueue(stream, "matmul", [=]() mutable {
      check_workspace(algorithm, workspace, ticket);
      if (!host_scale) {
        gemm.alpha = *static_cast<const float*>(alpha);
        gemm.beta = *static_cast<const float*>(beta);
      }
      for (int batch = 0; batch < p.a.batch; ++batch) {
        gemm.a.data = advance(a, p.a, batch);
        gemm.b.data = advance(b, p.b, batch);
        gemm.c.data = advance(c, p.c, batch);
        gemm.d.data = advance(d, p.d, batch);
        emulated::run_gemm(gemm);
      }
    });
    return status == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
  });
}
