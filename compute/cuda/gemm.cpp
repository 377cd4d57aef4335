#include "compute/cuda/gemm.hpp"

#include <algorithm>
#include <numeric>

#include "compute/cuda/error.hpp"
#include "compute/cuda/gemm_trial.hpp"
#include "compute/cuda/plan/arena.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

template <class Value>
void set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, Value value) {
  check(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
}

template <class Value>
void set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
         Value value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute");
}

void set_cols(cublasLtMatrixLayout_t layout, std::int64_t cols) {
  const auto value = static_cast<std::uint64_t>(cols);
  check(
      cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &value, sizeof(value)),
      "cublasLtMatrixLayoutSetAttribute");
}

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::bfloat16 ? CUDA_R_16BF : dtype == DType::float16 ? CUDA_R_16F : CUDA_R_32F;
}

/// What every row's address is a multiple of, of rows of so many bytes; or what an address is.
std::uint32_t alignment_of(std::size_t bytes) {
  return static_cast<std::uint32_t>(std::gcd(bytes, Arena::alignment));
}

bool splits_the_sum(const cublasLtMatmulAlgo_t& algo) {
  std::int32_t parts = 1;
  std::size_t written = 0;
  const auto code = cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                         &parts, sizeof(parts), &written);
  return code == CUBLAS_STATUS_SUCCESS && (parts > 1 || parts < 0);  // -1: stream-k
}

constexpr int most_candidates = 8;

/// The library's word that it cannot do this; nothing was enqueued.
bool is_refusal(cublasStatus_t code) {
  return code == CUBLAS_STATUS_NOT_SUPPORTED || code == CUBLAS_STATUS_INVALID_VALUE;
}

}  // namespace

std::size_t bucket_of(std::int64_t rows) {
  const auto at = std::lower_bound(row_buckets.begin(), row_buckets.end(), rows);
  return static_cast<std::size_t>(std::min(at, row_buckets.end() - 1) - row_buckets.begin());
}

CudaGemm::CudaGemm(DType dtype, void* workspace) : dtype_(dtype), workspace_(workspace) {
  cublasLtHandle_t handle = nullptr;
  check(cublasLtCreate(&handle), "cublasLtCreate");
  handle_.reset(handle);
}

CudaGemm::~CudaGemm() = default;

std::string CudaGemm::library() {
  const auto version = cublasLtGetVersion();  // e.g. 130100
  return fmt::format("cuBLASLt {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

CudaGemm::Layout CudaGemm::make_layout(cudaDataType_t type, int rows, std::int64_t cols) const {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, type, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(cols), rows),
        "cublasLtMatrixLayoutCreate");
  return Layout(layout);
}

/// cuBLASLt counts in columns: our row-major [rows, n] is its column-major [n, rows]. So the
/// result's transpose is computed: [n, rows] = weight [k, n] transposed * in [k, rows].
CudaGemm::KindState CudaGemm::describe(int n, int k, Output output, int max_rows,
                                       const void* weight) const {
  KindState kind;
  kind.n = n;
  kind.k = k;
  kind.output = output;
  kind.max_rows = max_rows;
  kind.weight = weight;
  cublasLtMatmulDesc_t desc = nullptr;
  check(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "cublasLtMatmulDescCreate");
  kind.desc.reset(desc);
  set(desc, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(desc, CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
  if (output == Output::gelu) {
    set(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_GELU);
  }
  const cudaDataType_t type = type_of(dtype_);
  kind.weight_layout = make_layout(type, k, n);
  kind.in_layout = make_layout(type, k, 1);
  kind.out_layout = make_layout(output == Output::float32 ? CUDA_R_32F : type, n, 1);
  return kind;
}

CudaGemm::Kind CudaGemm::add(int n, int k, Output output, int max_rows, const void* weight,
                             int whole_n) {
  kinds_.push_back(describe(n, k, output, max_rows, weight));
  kinds_.back().whole_n = whole_n;
  return static_cast<Kind>(kinds_.size()) - 1;
}

std::vector<cublasLtMatmulAlgo_t> CudaGemm::candidates(const KindState& kind, int rows) const {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                        cublasStatus_t (*)(cublasLtMatmulPreference_t)>
      owner(preference, cublasLtMatmulPreferenceDestroy);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      static_cast<std::uint64_t>(gemm_workspace_bytes));
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_NONE));
  const auto in_alignment = alignment_of(static_cast<std::size_t>(kind.k) * size_of(dtype_));
  const auto out_alignment =
      alignment_of(static_cast<std::size_t>(kind.n) * kind.out_bytes(dtype_));
  // A part of a weight may begin at any of its rows.
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, in_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, in_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment);
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment);
  set_cols(kind.in_layout.get(), rows);
  set_cols(kind.out_layout.get(), rows);
  std::array<cublasLtMatmulHeuristicResult_t, most_candidates> found{};
  int count = 0;
  const auto code = cublasLtMatmulAlgoGetHeuristic(
      handle_.get(), kind.desc.get(), kind.weight_layout.get(), kind.in_layout.get(),
      kind.out_layout.get(), kind.out_layout.get(), preference, most_candidates, found.data(),
      &count);
  std::vector<cublasLtMatmulAlgo_t> algos;
  if (is_refusal(code)) return algos;
  check(code, "cublasLtMatmulAlgoGetHeuristic");
  for (int i = 0; i < count; ++i) {
    const auto& result = found[static_cast<std::size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS && !splits_the_sum(result.algo)) {
      algos.push_back(result.algo);
    }
  }
  return algos;
}

bool CudaGemm::writes_as_aligned(const KindState& kind, const KindState& other) const {
  constexpr std::uint32_t most = 16;  // that an algorithm asks for
  const auto aligned = [&](const KindState& of) {
    return alignment_of(static_cast<std::size_t>(of.n) * of.out_bytes(dtype_));
  };
  return aligned(kind) >= std::min(most, aligned(other));
}

cublasStatus_t CudaGemm::launch(const Stream& stream, const KindState& kind, const void* weight,
                                const cublasLtMatmulAlgo_t& algo, const void* in, std::int64_t rows,
                                void* out) const {
  constexpr float one = 1;
  constexpr float zero = 0;
  set_cols(kind.in_layout.get(), rows);
  set_cols(kind.out_layout.get(), rows);
  return cublasLtMatmul(handle_.get(), kind.desc.get(), &one, weight, kind.weight_layout.get(), in,
                        kind.in_layout.get(), &zero, out, kind.out_layout.get(), out,
                        kind.out_layout.get(), &algo, workspace_, gemm_workspace_bytes,
                        stream.raw());
}

void CudaGemm::run(const Stream& stream, Kind kind, const void* weight, const void* in,
                   std::int64_t rows, void* out) {
  if (rows == 0) return;
  const KindState& state = kinds_[static_cast<std::size_t>(kind)];
  const auto code = launch(stream, state, weight, state.algos[bucket_of(rows)], in, rows, out);
  if (is_refusal(code)) {
    run_replaced(stream, state, weight, in, rows, out, code);
  } else {
    check(code, "cublasLtMatmul");
  }
}

void CudaGemm::run_replaced(const Stream& stream, const KindState& kind, const void* weight,
                            const void* in, std::int64_t rows, void* out, cublasStatus_t code) {
  ++num_replaced_;
  const auto runs = [&](const cublasLtMatmulAlgo_t& algo) {
    const auto again = launch(stream, kind, weight, algo, in, rows, out);
    if (!is_refusal(again)) check(again, "cublasLtMatmul");
    return again == CUBLAS_STATUS_SUCCESS;
  };
  // Those of other row counts have the same bits.
  if (std::any_of(kind.algos.begin(), kind.algos.end(), runs)) return;
  ++num_replaced_untried_;
  const auto proposed = candidates(kind, static_cast<int>(rows));
  if (std::any_of(proposed.begin(), proposed.end(), runs)) return;
  check(code, fmt::format("cublasLtMatmul of {} x {} with {} rows", kind.n, kind.k, rows));
}

std::string CudaGemm::row_dependent_kinds() const {
  std::string text;
  for (const KindState& kind : kinds_) {
    if (!kind.row_dependent || kind.left_out) continue;
    text += fmt::format("{}{} x {}", text.empty() ? "" : ", ", kind.n, kind.k);
  }
  return text;
}

}  // namespace atl::compute::cuda
