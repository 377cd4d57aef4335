#include "compute/cuda/gemm_trial.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "compute/convert.hpp"
#include "compute/cuda/error.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

/// Columns of made-up weights that differ.
constexpr int base_columns = 256;
/// Cancelling numbers are normal ones times 2^e, e evenly from -widest to widest.
constexpr int widest = 6;

/// Whoever waits here does so before the first pass.
void finish(const Stream& stream) {
  check(cudaStreamSynchronize(stream.raw()), "cudaStreamSynchronize");
}

std::size_t free_bytes() {
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

/// Root of the mean square of cancelling numbers.
float cancelling_rms() {
  double squares = 0;
  for (int e = -widest; e <= widest; ++e) squares += std::ldexp(1.0, 2 * e);
  return static_cast<float>(std::sqrt(squares / (2 * widest + 1)));
}

class Numbers {
 public:
  explicit Numbers(unsigned seed) : generator_(seed) {}
  float ordinary(float scale) { return scale * normal_(generator_); }
  /// k numbers whose second half is `sign` times the first.
  void cancelling(float* row, int k, float sign) {
    for (int i = 0; i < k / 2; ++i) {
      row[i] = std::ldexp(normal_(generator_), exponent_(generator_));
      row[k - k / 2 + i] = sign * row[i];
    }
  }

 private:
  std::mt19937 generator_;
  std::normal_distribution<float> normal_;
  std::uniform_int_distribution<int> exponent_{-widest, widest};
};

/// Copies [base, k] to [rows, k] on the device, again and again.
void repeat(const std::vector<float>& floats, int k, void* device, int rows, DType dtype,
            const Stream& stream) {
  const std::size_t row_bytes = static_cast<std::size_t>(k) * size_of(dtype);
  const int base = static_cast<int>(floats.size() / static_cast<std::size_t>(k));
  std::vector<std::byte> bytes(static_cast<std::size_t>(base) * row_bytes);
  from_float(floats, bytes.data(), dtype);
  for (int first = 0; first < rows; first += base) {
    check(cudaMemcpyAsync(
              static_cast<std::byte*>(device) + static_cast<std::size_t>(first) * row_bytes,
              bytes.data(), static_cast<std::size_t>(std::min(base, rows - first)) * row_bytes,
              cudaMemcpyHostToDevice, stream.raw()),
          "cudaMemcpyAsync");
  }
  finish(stream);
}

}  // namespace

CudaGemm::Trial::Trial(const CudaGemm& gemm, const KindState& kind, const Stream& stream,
                       int largest)
    : gemm_(gemm),
      kind_(kind),
      stream_(stream),
      rows_(std::max(largest, reference_rows)),
      in_row_bytes_(static_cast<std::size_t>(kind.k) * size_of(gemm.dtype_)),
      out_row_bytes_(static_cast<std::size_t>(kind.n) * kind.out_bytes(gemm.dtype_)) {
  allocate();
  fill();
}

/// The test data is gone before the first pass; most of what is free now may be needed then. Other
/// ranks on this device take from the same.
void CudaGemm::Trial::allocate() {
  const bool may_be_own = kind_.weight != nullptr && kind_.n >= reference_columns;
  // In float32 every difference shows in ordinary rows too.
  bool made_up = !may_be_own || kind_.output != Output::float32;
  const auto columns = static_cast<std::size_t>(std::max(kind_.n, reference_columns));
  if (made_up && may_be_own && columns * in_row_bytes_ > free_bytes() / 2) made_up = false;
  if (made_up) {
    try {
      own_weight_ = DeviceBuffer(columns * in_row_bytes_, "test weights");
    } catch (const Error&) {
      if (!may_be_own) throw;
      made_up = false;
    }
  }
  weight_ = static_cast<const std::byte*>(made_up ? own_weight_.data() : kind_.weight);
  const std::size_t fitting = free_bytes() / 2 / (in_row_bytes_ + out_row_bytes_);
  rows_ = static_cast<int>(
      std::clamp<std::size_t>(fitting, reference_rows, static_cast<std::size_t>(rows_)));
  const std::size_t of_reference =
      std::size_t{base_rows} * reference_columns * kind_.out_bytes(gemm_.dtype_);
  for (;;) {
    try {
      in_ = DeviceBuffer(static_cast<std::size_t>(rows_) * in_row_bytes_, "test data of GEMMs");
      out_ = DeviceBuffer(std::max(static_cast<std::size_t>(rows_) * out_row_bytes_, of_reference),
                          "test results of GEMMs");
      return;
    } catch (const Error&) {
      if (rows_ == reference_rows) throw;
      in_ = DeviceBuffer();
      rows_ = std::max(reference_rows, rows_ / 2);
    }
  }
}

void CudaGemm::Trial::fill() {
  const int k = kind_.k;
  const auto width = static_cast<std::size_t>(k);
  const bool made_up = own_weight_.data() != nullptr;
  const float scale = made_up ? 1 / (std::sqrt(static_cast<float>(k)) * cancelling_rms()) : 1;
  std::vector<float> rows(base_rows * width);
  Numbers of_rows(2026);
  for (std::size_t r = 0; r < base_rows; ++r) {
    float* const row = rows.data() + r * width;
    if (made_up && r % 2 == 0) {
      of_rows.cancelling(row, k, -1);
    } else {
      std::generate_n(row, k, [&] { return of_rows.ordinary(scale); });
    }
  }
  repeat(rows, k, in_.data(), rows_, gemm_.dtype_, stream_);
  if (!made_up) return;
  std::vector<float> weights(base_columns * width);
  Numbers of_weights(1122);
  for (std::size_t n = 0; n < base_columns; ++n) {
    of_weights.cancelling(weights.data() + n * width, k, 1);
  }
  repeat(weights, k, own_weight_.data(), std::max(kind_.n, reference_columns), gemm_.dtype_,
         stream_);
}

bool CudaGemm::Trial::launch(const KindState& kind, const std::byte* weight,
                             const cublasLtMatmulAlgo_t& algo, int first, int rows) {
  // Results that were not written must not look right.
  check(cudaMemsetAsync(out_.data(), 0xff,
                        static_cast<std::size_t>(rows) * static_cast<std::size_t>(kind.n) *
                            kind.out_bytes(gemm_.dtype_),
                        stream_.raw()),
        "cudaMemsetAsync");
  const auto code = gemm_.launch(
      stream_, kind, weight, algo,
      static_cast<const std::byte*>(in_.data()) + static_cast<std::size_t>(first) * in_row_bytes_,
      rows, out_.data());
  finish(stream_);
  return code == CUBLAS_STATUS_SUCCESS;
}

bool CudaGemm::Trial::run(const cublasLtMatmulAlgo_t& algo, int first, int rows) {
  return launch(kind_, weight_, algo, first, rows);
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

void CudaGemm::Trial::tell(const Reference& reference) {
  const std::size_t element = kind_.out_bytes(gemm_.dtype_);
  std::vector<std::byte> block(base_rows * reference_columns * element);
  std::vector<std::byte> told(base_rows * out_row_bytes_);
  for (int first = 0; first < kind_.n; first += reference_columns) {
    // The last block begins earlier, so that it is as large as the others.
    const int begin = std::max(0, std::min(first, kind_.n - reference_columns));
    const int count = std::min(kind_.n, reference_columns);
    if (!launch(reference.kind, weight_ + static_cast<std::size_t>(begin) * in_row_bytes_,
                *reference.algo, 0, base_rows)) {
      return;
    }
    check(cudaMemcpyAsync(block.data(), out_.data(), block.size(), cudaMemcpyDeviceToHost,
                          stream_.raw()),
          "cudaMemcpyAsync");
    finish(stream_);
    for (std::size_t r = 0; r < base_rows; ++r) {
      std::memcpy(told.data() + r * out_row_bytes_ + static_cast<std::size_t>(begin) * element,
                  block.data() + r * reference_columns * element,
                  static_cast<std::size_t>(count) * element);
    }
  }
  expected_ = std::move(told);
}

bool CudaGemm::Trial::agrees(const cublasLtMatmulAlgo_t& algo, int first, int rows) {
  if (!run(algo, first, rows)) return false;
  // The first and the last rows speak for those between: tiles are alike.
  const int checked = std::min(base_rows, rows);
  for (const int begin : {0, rows - checked}) {
    const auto bytes = fetch(begin, checked);
    for (int i = 0; i < checked; ++i) {
      const auto truth = static_cast<std::size_t>((first + begin + i) % base_rows);
      if (std::memcmp(bytes.data() + static_cast<std::size_t>(i) * out_row_bytes_,
                      expected_.data() + truth * out_row_bytes_, out_row_bytes_) != 0) {
        return false;
      }
    }
    if (rows == checked) break;
  }
  return true;
}

bool CudaGemm::Trial::keeps_bits(const cublasLtMatmulAlgo_t& algo, int least_rows, int most_rows) {
  const int offset = std::min(3, rows_ - least_rows);
  const int between = std::max(least_rows, most_rows - 1);
  if (!agrees(algo, 0, most_rows) || !agrees(algo, offset, least_rows) ||
      !agrees(algo, 0, between)) {
    return false;
  }
  // Few rows have few values, and another GELU differs in some of them only.
  if (kind_.output != Output::gelu) return true;
  for (int first = most_rows; first + most_rows <= base_rows; first += most_rows) {
    if (!agrees(algo, first, most_rows)) return false;
  }
  return true;
}

float CudaGemm::Trial::time(const cublasLtMatmulAlgo_t& algo, int rows) {
  constexpr std::size_t samples = 3;
  std::vector<CudaEvent> begins, ends;
  for (std::size_t i = 0; i < samples; ++i) {
    begins.emplace_back(CudaEvent::Timing::on);
    ends.emplace_back(CudaEvent::Timing::on);
  }
  // All at once, so that the device never waits for the host.
  for (std::size_t i = 0; i < samples; ++i) {
    gemm_.flush(stream_);
    begins[i].record(stream_);
    const auto code = gemm_.launch(stream_, kind_, weight_, algo, in_.data(), rows, out_.data());
    ends[i].record(stream_);
    if (code == CUBLAS_STATUS_SUCCESS) continue;
    finish(stream_);
    return std::numeric_limits<float>::infinity();
  }
  finish(stream_);
  std::array<float, samples> milliseconds{};
  for (std::size_t i = 0; i < samples; ++i) {
    check(cudaEventElapsedTime(&milliseconds[i], begins[i].raw(), ends[i].raw()),
          "cudaEventElapsedTime");
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds[samples / 2];
}

std::vector<float> CudaGemm::Trial::ordinary_values() {
  const auto bytes = fetch(0, base_rows);
  const DType dtype = kind_.output == Output::float32 ? DType::float32 : gemm_.dtype_;
  std::vector<float> all(bytes.size() / size_of(dtype));
  to_float(bytes.data(), dtype, all);
  const auto width = static_cast<std::ptrdiff_t>(kind_.n);
  std::vector<float> values;
  for (std::ptrdiff_t r = 1; r < base_rows; r += 2) {
    values.insert(values.end(), all.begin() + r * width, all.begin() + (r + 1) * width);
  }
  return values;
}

}  // namespace atl::compute::cuda
