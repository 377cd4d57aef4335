#pragma once
// Few rows by weights that are kept as codes, in turn with the same weights in BF16: how much
// faster a decode step's products are, in one run.

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "compute/aligned_buffer.hpp"
#include "compute/clock.hpp"
#include "compute/cpu/gemm.hpp"
#include "compute/cpu/panel_gemm.hpp"
#include "compute/error.hpp"
#include "compute/loading.hpp"

namespace atl::perf {

/// Enough copies of both that every product finds its own in memory; one thread.
class CodedGemm {
 public:
  /// Throws Error where the two results differ in any bit.
  CodedGemm(Code code, int rows, int k, int n, std::int64_t more_than_caches)
      : rows_(rows), gemm_(DType::bfloat16, 1, compute::cpu_isa()) {
    omp_set_num_threads(1);
    std::mt19937 random(5);
    const Coding coding{code, code == Code::fp8 ? 128 : 32};
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(n * coding.row_bytes(k)));
    for (std::uint8_t& byte : codes) {
      byte = static_cast<std::uint8_t>(random());
      if (code == Code::fp8 && (byte & 127U) == 127U) byte ^= 1U;
    }
    // FP8 is published with a scale for 128 rows, the others with one for each.
    const auto groups = static_cast<std::size_t>(coding.groups(k));
    std::vector<std::uint8_t> scales(static_cast<std::size_t>(n) * groups *
                                     static_cast<std::size_t>(coding.scale_bytes()));
    for (std::size_t i = 0; i < static_cast<std::size_t>(n) * groups; ++i) {
      const std::size_t row = code == Code::fp8 ? i / groups / 128 : i / groups;
      const float scale = 0.001F * static_cast<float>(1 + (row + i % groups) % 7);
      if (code == Code::mxfp4) {
        scales[i] = static_cast<std::uint8_t>(118 + (row + i % groups) % 7);
      } else {
        std::memcpy(scales.data() + 4 * i, &scale, 4);
      }
    }
    const HostTensor kept{codes.data(), DType::bfloat16, n, k, coding, scales.data()};
    compute::AlignedBuffer buffer;
    const void* plain = compute::converted(kept, DType::bfloat16, buffer);
    const auto copies = static_cast<int>(1 + more_than_caches / (2LL * n * k));
    for (int i = 0; i < copies; ++i) {
      plain_.push_back(gemm_.pack(plain, n, k));
      kept_.push_back(gemm_.pack_codes(kept));
    }
    gemm_.prepare(plain_.front(), compute::Finish::float32);
    in_.resize(static_cast<std::size_t>(compute::whole_tiles(rows) * k));
    for (std::uint16_t& bits : in_) {
      bits = static_cast<std::uint16_t>(0x3f00U | (random() & 0x80ffU));
    }
    const auto results = static_cast<std::size_t>(compute::whole_tiles(rows) * n);
    out_.resize(results);
    multiply(plain_.front());
    const std::vector<float> wanted = out_;
    multiply(kept_.front());
    const auto count = static_cast<std::size_t>(rows) * static_cast<std::size_t>(n) * sizeof(float);
    require(std::memcmp(wanted.data(), out_.data(), count) == 0,
            "products by {} differ from those by the same numbers", name_of(code));
  }

  /// Seconds of a product by each.
  struct Times {
    double plain;
    double kept;
  };
  Times once() { return {seconds_of(plain_), seconds_of(kept_)}; }

 private:
  void multiply(const compute::PackedWeight& weight) {
    gemm_.run(weight, in_.data(), rows_, out_.data(), compute::Finish::float32, nullptr);
  }
  double seconds_of(const std::vector<compute::PackedWeight>& weights) {
    const double begin = now_seconds();
    for (const compute::PackedWeight& weight : weights) multiply(weight);
    return (now_seconds() - begin) / static_cast<double>(weights.size());
  }

  int rows_;
  compute::PanelGemm gemm_;
  std::vector<compute::PackedWeight> plain_, kept_;
  std::vector<std::uint16_t> in_;
  std::vector<float> out_;
};

}  // namespace atl::perf
