// Which algorithms CudaGemm uses: tried on test data before the first pass.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/convert.hpp"
#include "compute/cuda/error.hpp"
#include "compute/cuda/gemm.hpp"
#include "compute/cuda/gemm_trial.hpp"
#include "compute/cuda/switches.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

/// The number of rows that cuBLASLt is asked for when a reference is found.
constexpr int asked_rows = 4096;

double gelu_tanh(double x) {
  const double inner = std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1 + std::tanh(inner));
}

/// Memory that a timed GEMM finds in the device's second cache instead of its weights, as in a
/// pass, where other weights were read before; twice the cache.
std::size_t flushed_bytes() {
  if (!read_switches().cold_trials) return 0;
  int device = 0;
  int bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute");
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return std::min(2 * static_cast<std::size_t>(std::max(bytes, 0)), free / 8);
}

}  // namespace

/// Of those proposed the first whose rows keep their bits, or else the first that works.
CudaGemm::Reference CudaGemm::make_reference(int k, Output output, const Stream& stream) const {
  Reference reference;
  reference.kind = describe(Trial::reference_columns, k, output, Trial::reference_rows, nullptr);
  Trial trial(*this, reference.kind, stream, Trial::reference_rows);
  for (const auto& algo : candidates(reference.kind, asked_rows)) {
    if (!trial.run(algo, 0, Trial::reference_rows)) continue;
    if (!reference.algo) reference.algo = algo;
    trial.keep();
    if (!trial.keeps_bits(algo, 1, Trial::reference_rows)) continue;
    reference.algo = algo;
    reference.keeps_bits = true;
    break;
  }
  return reference;
}

const CudaGemm::Reference& CudaGemm::reference_of(int k, Output output, const Stream& stream) {
  const auto known =
      std::find_if(references_.begin(), references_.end(), [&](const auto& reference) {
        return reference->kind.k == k && reference->kind.output == output;
      });
  if (known != references_.end()) return **known;
  references_.push_back(std::make_unique<Reference>(make_reference(k, output, stream)));
  return *references_.back();
}

const cublasLtMatmulAlgo_t* CudaGemm::usual_algorithm(
    KindState& kind, Trial& trial, std::span<const cublasLtMatmulAlgo_t> proposed) const {
  kind.row_dependent = false;
  const cublasLtMatmulAlgo_t* usual = nullptr;
  for (const auto& algo : proposed) {
    if (!trial.run(algo, 0, Trial::reference_rows)) continue;
    if (usual == nullptr) usual = &algo;
    if (trial.is_told() && trial.keeps_bits(algo, 1, trial.rows())) return &algo;
  }
  // Of a product that no layout cuts it is enough that rows have the same bits in any company.
  for (const auto& algo : proposed) {
    if (kind.whole_n > 0 || kind.output == Output::gelu) break;
    if (!trial.run(algo, 0, Trial::reference_rows)) continue;
    trial.keep();
    if (trial.keeps_bits(algo, 1, trial.rows())) return &algo;
  }
  kind.row_dependent = usual != nullptr;
  return usual;
}

void CudaGemm::choose(KindState& kind, Trial& trial, const Reference& reference) const {
  std::vector<cublasLtMatmulAlgo_t> proposed;
  if (reference.algo && writes_as_aligned(kind, reference.kind)) {
    proposed.push_back(*reference.algo);
  }
  const auto more = candidates(kind, asked_rows);
  proposed.insert(proposed.end(), more.begin(), more.end());
  const int most = trial.rows();
  const cublasLtMatmulAlgo_t* const usual = usual_algorithm(kind, trial, proposed);
  if (usual == nullptr) return;
  kind.algos.assign(row_buckets.size(), *usual);
  for (std::size_t bucket = 0; bucket < row_buckets.size(); ++bucket) {
    const int least_rows = bucket == 0 ? 1 : row_buckets[bucket - 1] + 1;
    if (least_rows > most || kind.row_dependent) break;
    const int rows = std::min(row_buckets[bucket], most);
    float best = trial.time(*usual, rows);
    for (const auto& algo : candidates(kind, rows)) {
      if (std::memcmp(&algo, usual, sizeof(algo)) == 0) continue;
      if (!trial.keeps_bits(algo, least_rows, rows)) continue;
      const float time = trial.time(algo, rows);
      if (time >= best) continue;
      best = time;
      kind.algos[bucket] = algo;
    }
  }
}

void CudaGemm::prepare(const Stream& stream) {
  const Doing doing("choosing GEMM algorithms");
  try {
    flushed_ = DeviceBuffer(flushed_bytes(), "the time of GEMMs");
  } catch (const Error&) {
    // Other ranks on this device were quicker: GEMMs are timed as they are.
  }
  for (KindState& kind : kinds_) {
    const Reference& reference = reference_of(kind.k, kind.output, stream);
    Trial trial(*this, kind, stream, std::min(kind.max_rows, row_buckets.back()));
    if (reference.keeps_bits) trial.tell(reference);
    choose(kind, trial, reference);
    require(
        !kind.algos.empty() || kind.output == Output::gelu,
        "cuBLASLt has no algorithm that works for a {} GEMM of {} x {} on {}; use --backend cpu",
        name_of(dtype_), kind.n, kind.k, device_name());
  }
  flushed_ = DeviceBuffer();
}

void CudaGemm::flush(const Stream& stream) const {
  if (flushed_.bytes() == 0) return;
  check(cudaMemsetAsync(flushed_.data(), 0, flushed_.bytes(), stream.raw()), "cudaMemsetAsync");
}

/// All algorithms that are chosen have the reference's bits, also where GELU is no straight line:
/// what it computes speaks for them.
bool CudaGemm::gelu_is_accurate(int k, const Stream& stream) {
  const Doing doing("checking the fused GELU");
  const Reference& fused = reference_of(k, Output::gelu, stream);
  const Reference& plain = reference_of(k, Output::float32, stream);
  if (!fused.keeps_bits || !plain.algo) return false;
  const auto values_of = [&](const Reference& reference) {
    Trial trial(*this, reference.kind, stream, Trial::reference_rows);
    const bool runs = trial.run(*reference.algo, 0, Trial::reference_rows);
    return runs ? trial.ordinary_values() : std::vector<float>();
  };
  const auto results = values_of(fused);
  const auto inputs = values_of(plain);
  if (results.empty() || results.size() != inputs.size()) return false;
  // What a kernel of our own would store: the exact value, rounded.
  std::vector<float> truths(inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    truths[i] = static_cast<float>(gelu_tanh(static_cast<double>(inputs[i])));
  }
  std::vector<std::byte> rounded(truths.size() * size_of(dtype_));
  std::vector<float> rounded_truths(truths.size());
  from_float(truths, rounded.data(), dtype_);
  to_float(rounded.data(), dtype_, rounded_truths);
  double fused_error = 0;
  double rounding_error = 0;
  for (std::size_t i = 0; i < truths.size(); ++i) {
    fused_error += std::abs(static_cast<double>(results[i]) - static_cast<double>(truths[i]));
    rounding_error +=
        std::abs(static_cast<double>(rounded_truths[i]) - static_cast<double>(truths[i]));
  }
  // The hardware's tanh, good to 2^-11, adds 1 to 3 % to the error of rounding to bfloat16, which
  // no result shows, and 19 to 48 % to that of float16, where a kernel of our own takes its place.
  constexpr double tolerated = 1.05;
  return fused_error <= tolerated * rounding_error;
}

}  // namespace atl::compute::cuda
