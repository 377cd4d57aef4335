#include "compute/cpu/probe.hpp"

#include <fmt/format.h>
#include <omp.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <dnnl.hpp>
#include <vector>

#include "compute/clock.hpp"
#include "compute/cpu/gemm.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr int gemm_side = 1024;
constexpr int tries = 5;
constexpr double least_seconds = 0.02;  // of one try: thousands of the clock's steps

/// Seconds that this thread was on a core.
double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

/// Runs of `work` per second of processor time, the best of some tries; the first warms up.
template <class Work>
double best_rate(const Work& work) {
  double best = 0;
  for (int i = 0; i <= tries; ++i) {
    const double begin = processor_seconds();
    double taken = 0;
    int runs = 0;
    while (taken < least_seconds) {
      work();
      ++runs;
      taken = processor_seconds() - begin;
    }
    if (i > 0) best = std::max(best, runs / taken);
  }
  return best;
}

double gemm_rate() {
  const auto gemm = make_gemm(DType::bfloat16, 1);
  constexpr std::uint16_t one = 0x3f80;
  constexpr auto side = static_cast<std::size_t>(gemm_side);
  const std::vector<std::uint16_t> weight(side * side, one);
  const PackedWeight packed = gemm->pack(weight.data(), gemm_side, gemm_side);
  gemm->prepare(packed, Finish::float32);
  const std::vector<std::uint16_t> a(tile_rows * side, one);
  std::vector<float> c(tile_rows * side);
  const double rate =
      best_rate([&] { gemm->run(packed, a.data(), tile_rows, c.data(), Finish::float32); });
  require(std::all_of(c.begin(), c.end(), [](float sum) { return sum == gemm_side; }),
          "a GEMM of ones did not give {} everywhere; this core computes wrongly", gemm_side);
  return rate * 2.0 * tile_rows * gemm_side * gemm_side;
}

double read_rate() {
  const std::vector<std::uint64_t> memory(std::size_t{8} << 20, 1);  // 64 MiB
  std::uint64_t sum = 0;
  std::int64_t runs = 0;
  const double rate = best_rate([&] {
    for (const std::uint64_t word : memory) sum += word;
    ++runs;
  });
  require(sum == memory.size() * static_cast<std::uint64_t>(runs),
          "a sum over memory is wrong; look at this node's memory");
  return rate * static_cast<double>(memory.size() * sizeof(std::uint64_t));
}

}  // namespace

CoreRates measure_core() {
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  CoreRates rates;
  const double begin = now_seconds();
  const double on_core = processor_seconds();
  rates.flops_per_s = gemm_rate();
  rates.read_bytes_per_s = read_rate();
  rates.share = std::min(1.0, (processor_seconds() - on_core) / (now_seconds() - begin));
  omp_set_num_threads(before);
  return rates;
}

std::string one_dnn_version() {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("{}.{}.{}", version->major, version->minor, version->patch);
}

}  // namespace atl::compute
