// cuBLASLt for the emulated device: what a program needs of it for products of bfloat16, float16 or
// float32 matrices with float32 sums. Its algorithms differ in the workspace they need and in the
// order in which they sum, as the real ones do.

#include "tests/emulated_cuda/cublaslt.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/emulated_cuda/gemm.hpp"
#include "tests/emulated_cuda/memory.hpp"

namespace {

using emulated::Algorithm;
using emulated::Description;
using emulated::Gemm;
using emulated::Layout;
using emulated::lt_call;
using emulated::Place;
using emulated::Preference;
using emulated::read;
using emulated::write;

/// The algorithm whose GELU is another than that of the others; it sums as the first two do.
constexpr std::int32_t rough_gelu = 5;

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
    g.activation = algorithm.id == rough_gelu ? emulated::Activation::gelu_tanh_rough
                                              : emulated::Activation::gelu_tanh;
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

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoConfigGetAttribute(
    const cublasLtMatmulAlgo_t* algo, cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
    std::size_t bytes, std::size_t* written) {
  return lt_call("cublasLtMatmulAlgoConfigGetAttribute", [&] {
    if (algo == nullptr || value == nullptr || attribute != CUBLASLT_ALGO_CONFIG_SPLITK_NUM ||
        bytes != sizeof(std::int32_t)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    const auto algorithm = read<Algorithm>(algo);
    const std::int32_t splits = algorithm.reduces() ? algorithm.splits : 1;
    std::memcpy(value, &splits, sizeof splits);
    if (written != nullptr) *written = sizeof splits;
    return CUBLAS_STATUS_SUCCESS;
  });
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
    // Few columns: sums in several parts first, as they fill a device better. Number 4 stands for
    // those that add in another order although they need no reduction: it is the first for few rows
    // of the result, so that a part of a product is not by itself what it is in the whole.
    static constexpr std::int32_t splits[] = {1, 1, 2, 4, 3, 1};
    static constexpr std::uint64_t workspaces[] = {0, 1U << 20U, 4U << 20U, 16U << 20U, 0, 0};
    static constexpr std::int32_t wide[] = {1, 0, 4, 2, 3, rough_gelu};
    static constexpr std::int32_t narrow[] = {2, rough_gelu, 4, 3, 0, 1};
    static constexpr std::int32_t low[] = {4, 1, 0, 2, 3, rough_gelu};
    const bool has_gelu = (p.description.epilogue & CUBLASLT_EPILOGUE_GELU) != 0;
    for (const std::int32_t id : p.m < 32 ? low : p.n < 64 ? narrow : wide) {
      if (*returned == requested || workspaces[id] > wanted.max_workspace) continue;
      if (id == rough_gelu && !has_gelu) continue;
      Algorithm algorithm{id, splits[id], workspaces[id], {}, p.signature()};
      if (algorithm.reduces() && wanted.reductions == CUBLASLT_REDUCTION_SCHEME_NONE) continue;
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
