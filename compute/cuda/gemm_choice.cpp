// Which algorithms CudaGemm uses: tried on test data before the first pass.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "compute/convert.hpp"
#include "compute/cuda/error.hpp"
#include "compute/cuda/gemm.hpp"
#include "compute/cuda/memory.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

/// Rows of test data that differ; beyond them they repeat, so that any row's true bits are known.
constexpr int base_rows = 64;
/// Rows with which the reference algorithm is found, and the number of rows that cuBLASLt is asked
/// for then: the same in every layout, or each layout would have a reference of its own.
constexpr int reference_rows = 128;
constexpr int reference_asked_rows = 4096;
/// Whoever waits here does so before the first pass.
void finish(const Stream& stream) {
  check(cudaStreamSynchronize(stream.raw()), "cudaStreamSynchronize");
}

double gelu_tanh(double x) {
  const double inner = std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
  return 0.5 * x * (1 + std::tanh(inner));
}

/// What test rows hold. Sums of cancelling rows are zero but for the rounding of their partial
/// sums, so that another order of summation shows also in results of 16 bits: second halves repeat
/// the first ones, negated in the inputs.
enum class Fill { normal, cancelling_input, cancelling_weight };

/// Fills [rows, k]; rows repeat after base_rows.
void fill_rows(void* device, int rows, int k, Fill fill, float scale, DType dtype,
               const Stream& stream) {
  std::mt19937 generator(fill == Fill::cancelling_weight ? 1122 : 2026);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> exponent(-6, 6);
  std::vector<float> floats(static_cast<std::size_t>(base_rows) * static_cast<std::size_t>(k));
  for (int r = 0; r < base_rows; ++r) {
    float* const row = floats.data() + static_cast<std::ptrdiff_t>(r) * k;
    if (fill == Fill::normal) {
      for (int i = 0; i < k; ++i) row[i] = scale * normal(generator);
      continue;
    }
    const float sign = fill == Fill::cancelling_input ? -1.0F : 1.0F;
    for (int i = 0; i < k / 2; ++i) {
      row[i] = std::ldexp(normal(generator), exponent(generator));
      row[k - k / 2 + i] = sign * row[i];
    }
  }
  const std::size_t row_bytes = static_cast<std::size_t>(k) * size_of(dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>(base_rows) * row_bytes);
  from_float(floats, bytes.data(), dtype);
  for (int first = 0; first < rows; first += base_rows) {
    check(cudaMemcpyAsync(
              static_cast<std::byte*>(device) + static_cast<std::size_t>(first) * row_bytes,
              bytes.data(), static_cast<std::size_t>(std::min(base_rows, rows - first)) * row_bytes,
              cudaMemcpyHostToDevice, stream.raw()),
          "cudaMemcpyAsync");
  }
  finish(stream);
}

}  // namespace

/// Test data of one kind and the bits that its reference algorithm makes of it.
class CudaGemm::Trial {
 public:
  /// `cancelling`: data on which orders of summation differ most; else normal numbers.
  Trial(const CudaGemm& gemm, const KindState& kind, const Stream& stream, bool cancelling);

  int rows() const { return rows_; }
  /// Runs `algo` on `rows` test rows from `first` on; false where it cannot, whatever the reason:
  /// another one may. Throws where the device is lost.
  bool run(const cublasLtMatmulAlgo_t& algo, int first, int rows);
  /// Takes what was run last as the reference's bits.
  void keep() { reference_ = fetch(0, base_rows); }
  /// Takes the first columns of what `whole` kept: its test weight begins with this one's rows.
  void keep_part_of(const Trial& whole);
  /// Whether what was run last has the reference's bits.
  bool agrees(int first, int rows);
  /// Both; true where a run of these rows has the reference's bits.
  bool agrees(const cublasLtMatmulAlgo_t& algo, int first, int rows) {
    return run(algo, first, rows) && agrees(first, rows);
  }
  /// Whether rows of these numbers, and from another place on, have the reference's bits.
  bool keeps_bits(const cublasLtMatmulAlgo_t& algo, int least_rows, int most_rows);
  bool is_told() const { return told_; }
  /// Milliseconds of a run, the best of a few; infinity where it cannot.
  float time(const cublasLtMatmulAlgo_t& algo, int rows);
  /// Result rows [first, first + rows) of what was run last, as float32.
  std::vector<float> values(int first, int rows);

 private:
  std::vector<std::byte> fetch(int first, int rows);
  /// Device memory for the test data: fewer rows where other ranks on this device were quicker.
  void allocate(bool own_weight);
  const CudaGemm& gemm_;
  const KindState& kind_;
  const Stream& stream_;
  DeviceBuffer own_weight_;
  const void* weight_;
  int rows_;
  std::size_t in_row_bytes_, out_row_bytes_;
  DeviceBuffer in_, out_;
  std::vector<std::byte> reference_;  // [base_rows, n]
  bool told_ = false;                 // by the whole that this is a part of
};

CudaGemm::Trial::Trial(const CudaGemm& gemm, const KindState& kind, const Stream& stream,
                       bool cancelling)
    : gemm_(gemm),
      kind_(kind),
      stream_(stream),
      weight_(kind.weight),
      rows_(std::clamp(kind.max_rows, reference_rows, row_buckets.back())),
      in_row_bytes_(static_cast<std::size_t>(kind.k) * size_of(gemm.dtype_)),
      out_row_bytes_(static_cast<std::size_t>(kind.n) * kind.out_bytes(gemm.dtype_)) {
  // The test data is gone before the first pass; most of what is free now may be needed then.
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  const std::size_t fitting = free / 2 / (in_row_bytes_ + out_row_bytes_);
  rows_ = static_cast<int>(
      std::clamp<std::size_t>(fitting, reference_rows, static_cast<std::size_t>(rows_)));
  // A part's rows are compared with the whole's, whose weight nobody here has: it is made up.
  const bool has_weight = kind.weight != nullptr && !kind.is_part();
  const bool every_difference_shows = cancelling && kind.output == Output::float32 && has_weight;
  allocate(!every_difference_shows);
  if (every_difference_shows) {
    fill_rows(in_.data(), rows_, kind.k, Fill::normal, 1, gemm.dtype_, stream);
    return;
  }
  fill_rows(in_.data(), rows_, kind.k, cancelling ? Fill::cancelling_input : Fill::normal, 1,
            gemm.dtype_, stream);
  fill_rows(own_weight_.data(), kind.n, kind.k, cancelling ? Fill::cancelling_weight : Fill::normal,
            1 / std::sqrt(static_cast<float>(kind.k)), gemm.dtype_, stream);
  weight_ = own_weight_.data();
}

void CudaGemm::Trial::allocate(bool own_weight) {
  if (own_weight) {
    own_weight_ = DeviceBuffer(static_cast<std::size_t>(kind_.n) * in_row_bytes_, "test weights");
  }
  for (;;) {
    try {
      in_ = DeviceBuffer(static_cast<std::size_t>(rows_) * in_row_bytes_, "test data of GEMMs");
      out_ =
          DeviceBuffer(static_cast<std::size_t>(rows_) * out_row_bytes_, "test results of GEMMs");
      return;
    } catch (const Error&) {
      if (rows_ == reference_rows) throw;
      in_ = DeviceBuffer();
      rows_ = std::max(reference_rows, rows_ / 2);
    }
  }
}

bool CudaGemm::Trial::run(const cublasLtMatmulAlgo_t& algo, int first, int rows) {
  // Results that were not written must not look right.
  check(cudaMemsetAsync(out_.data(), 0xff, static_cast<std::size_t>(rows) * out_row_bytes_,
                        stream_.raw()),
        "cudaMemsetAsync");
  const auto code = gemm_.launch(
      stream_, kind_, weight_, algo,
      static_cast<const std::byte*>(in_.data()) + static_cast<std::size_t>(first) * in_row_bytes_,
      rows, out_.data());
  finish(stream_);
  return code == CUBLAS_STATUS_SUCCESS;
}

std::vector<std::byte> CudaGemm::Trial::fetch(int first, int rows) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows) * out_row_bytes_);
  check(cudaMemcpyAsync(bytes.data(),
                        static_cast<const std::byte*>(out_.data()) +
                            static_cast<std::size_t>(first) * out_row_bytes_,
                        bytes.size(), cudaMemcpyDeviceToHost, stream_.raw()),
        "cudaMemcpyAsync");
  finish(stream_);
  return bytes;
}

bool CudaGemm::Trial::agrees(int first, int rows) {
  // The first and the last rows speak for those between: tiles are alike.
  const int checked = std::min(base_rows, rows);
  for (const int begin : {0, rows - checked}) {
    const auto bytes = fetch(begin, checked);
    for (int i = 0; i < checked; ++i) {
      const auto truth = static_cast<std::size_t>((first + begin + i) % base_rows);
      if (std::memcmp(bytes.data() + static_cast<std::size_t>(i) * out_row_bytes_,
                      reference_.data() + truth * out_row_bytes_, out_row_bytes_) != 0) {
        return false;
      }
    }
  }
  return true;
}

float CudaGemm::Trial::time(const cublasLtMatmulAlgo_t& algo, int rows) {
  const CudaEvent begin(CudaEvent::Timing::on);
  const CudaEvent end(CudaEvent::Timing::on);
  float best = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 3; ++i) {
    begin.record(stream_);
    const auto code = gemm_.launch(stream_, kind_, weight_, algo, in_.data(), rows, out_.data());
    end.record(stream_);
    finish(stream_);
    if (code != CUBLAS_STATUS_SUCCESS) return std::numeric_limits<float>::infinity();
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin.raw(), end.raw()), "cudaEventElapsedTime");
    best = std::min(best, milliseconds);
  }
  return best;
}

std::vector<float> CudaGemm::Trial::values(int first, int rows) {
  const auto bytes = fetch(first, rows);
  const DType dtype = kind_.output == Output::float32 ? DType::float32 : gemm_.dtype_;
  std::vector<float> floats(bytes.size() / size_of(dtype));
  to_float(bytes.data(), dtype, floats);
  return floats;
}

void CudaGemm::Trial::keep_part_of(const Trial& whole) {
  told_ = true;
  reference_.clear();
  for (std::size_t r = 0; r < base_rows; ++r) {
    const auto row =
        whole.reference_.begin() + static_cast<std::ptrdiff_t>(r * whole.out_row_bytes_);
    reference_.insert(reference_.end(), row, row + static_cast<std::ptrdiff_t>(out_row_bytes_));
  }
}

bool CudaGemm::Trial::keeps_bits(const cublasLtMatmulAlgo_t& algo, int least_rows, int most_rows) {
  const int offset = std::min(3, rows_ - least_rows);
  const int between = std::max(least_rows, most_rows - 1);
  return agrees(algo, 0, most_rows) && agrees(algo, offset, least_rows) && agrees(algo, 0, between);
}

CudaGemm::Reference CudaGemm::find_reference(std::span<const cublasLtMatmulAlgo_t> proposed,
                                             Trial& trial, bool as_told) const {
  Reference first_usable;
  for (const auto& algo : proposed) {
    if (!trial.run(algo, 0, reference_rows)) continue;
    if (first_usable.algo == nullptr) first_usable.algo = &algo;
    if (!as_told) trial.keep();
    if (!trial.keeps_bits(algo, 1, reference_rows)) continue;
    if (trial.keeps_bits(algo, 1, trial.rows())) return {&algo, true};
    break;
  }
  return first_usable;
}

void CudaGemm::tell_whole(const KindState& kind, const Stream& stream, Trial& trial) const {
  const KindState whole = describe(kind.whole_n, kind.k, kind.output, reference_rows, nullptr);
  Trial of_whole(*this, whole, stream, /*cancelling=*/true);
  const auto proposed = candidates(whole, reference_asked_rows);
  const Reference reference = find_reference(proposed, of_whole, /*as_told=*/false);
  // Where the whole has none, no rank's rows keep their bits, and its report says so.
  if (reference.keeps_bits) trial.keep_part_of(of_whole);
}

void CudaGemm::choose(KindState& kind, Trial& trial) const {
  const int most = trial.rows();
  const auto proposed = candidates(kind, reference_asked_rows);
  const Reference found = find_reference(proposed, trial, trial.is_told());
  const cublasLtMatmulAlgo_t* reference = found.algo;
  if (reference == nullptr) return;
  kind.row_dependent = !found.keeps_bits || (kind.is_part() && !trial.is_told());
  std::vector<cublasLtMatmulAlgo_t> algos(row_buckets.size(), *reference);
  for (std::size_t bucket = 0; bucket < row_buckets.size(); ++bucket) {
    const int least_rows = bucket == 0 ? 1 : row_buckets[bucket - 1] + 1;
    if (least_rows > most || kind.row_dependent) break;
    const int rows = std::min(row_buckets[bucket], most);
    float best = trial.time(*reference, rows);
    for (const auto& algo : candidates(kind, rows)) {
      if (std::memcmp(&algo, reference, sizeof(algo)) == 0) continue;
      if (!trial.keeps_bits(algo, least_rows, rows)) continue;
      const float time = trial.time(algo, rows);
      if (time >= best) continue;
      best = time;
      algos[bucket] = algo;
    }
  }
  kind.algos = std::move(algos);
}

void CudaGemm::prepare(const Stream& stream) {
  const Doing doing("choosing GEMM algorithms");
  for (KindState& kind : kinds_) {
    Trial trial(*this, kind, stream, /*cancelling=*/true);
    if (kind.is_part()) tell_whole(kind, stream, trial);
    choose(kind, trial);
    require(
        !kind.algos.empty() || kind.output == Output::gelu,
        "cuBLASLt has no algorithm that works for a {} GEMM of {} x {} on {}; use --backend cpu",
        name_of(dtype_), kind.n, kind.k, device_name());
  }
}

bool CudaGemm::gelu_is_accurate(Kind fused, Kind plain, const Stream& stream) const {
  const Doing doing("checking the fused GELU");
  const KindState& gelu = kinds_[static_cast<std::size_t>(fused)];
  const KindState& exact = kinds_[static_cast<std::size_t>(plain)];
  if (gelu.algos.empty() || gelu.row_dependent) return false;
  Trial fused_trial(*this, gelu, stream, /*cancelling=*/false);
  Trial plain_trial(*this, exact, stream, /*cancelling=*/false);
  const int rows = std::min({16, fused_trial.rows(), plain_trial.rows()});
  if (!fused_trial.run(gelu.algos[bucket_of(rows)], 0, rows)) return false;
  if (!plain_trial.run(exact.algos[bucket_of(rows)], 0, rows)) return false;
  const auto results = fused_trial.values(0, rows);
  const auto inputs = plain_trial.values(0, rows);
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
  constexpr double tolerated = 1.02;  // a few results may fall to the other side of a tie
  return fused_error <= tolerated * rounding_error;
}

}  // namespace atl::compute::cuda
