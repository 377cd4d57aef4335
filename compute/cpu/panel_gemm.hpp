#pragma once
// GEMMs of our own, with weights in panels at their own width (see kernels/panels.hpp).
//
// The panels of all products of a call are one sequence, of which threads take pieces as they
// become free, smaller ones towards its end: few rows of many experts keep every thread reading
// weights, and nothing waits between one expert and the next.

#include <vector>

#include "compute/cpu/gemm.hpp"
#include "compute/cpu/kernels.hpp"

namespace atl::compute {

class PanelGemm final : public Gemm {
 public:
  PanelGemm(DType dtype, int num_threads, CpuIsa isa);

  PackedWeight pack(const void* weight, int n, int k) override;
  std::int64_t packed_bytes(int n, int k) const override;
  PackedWeight pack_codes(const HostTensor& weight) override;
  std::int64_t bytes_of_codes(int n, int k, const Coding& coding) const override;
  void prepare(const PackedWeight& weight, Finish finish) override;
  using Gemm::run;
  void run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out, Finish finish,
           const float* bias) override;
  void run(std::span<const Product> products) override;
  bool adds_biases() const override { return true; }
  int rows_at_once() const override { return most_rows_at_once; }
  std::string description() const override;
  std::int64_t buffer_bytes() const override { return scratch_.bytes(); }
  std::int64_t buffer_bytes(std::span<const GemmUse> uses) const override;

 private:
  int panels_of(int n) const { return (n + kernels_.panel_columns - 1) / kernels_.panel_columns; }
  std::int64_t panel_bytes(int k) const {
    const std::int64_t padded =
        (k + kernels_.panel_step - 1) / kernels_.panel_step * kernels_.panel_step;
    return padded * kernels_.panel_columns * static_cast<std::int64_t>(size_of(dtype_));
  }
  std::int64_t panel_bytes(int k, const Coding& coding) const {
    return coding.used() ? coded_panel_bytes(coding, k, kernels_) : panel_bytes(k);
  }
  std::size_t result_bytes(Finish finish) const {
    const bool floats = finish == Finish::float32 || finish == Finish::add;
    return floats ? sizeof(float) : size_of(dtype_);
  }
  /// Panels [begin, end) of the sequence.
  void run_panels(std::span<const Product> products, std::int64_t begin, std::int64_t end,
                  float* scratch) const;
  /// Panels [first, first + count) of a product.
  void run_task(const Product& product, int first, int count, float* scratch) const;
  /// Of one row's sums, and its gate's, what becomes of `columns` of them from `column` on.
  void finish_row(const Product& product, float* sums, float* gate, std::int64_t column,
                  std::int64_t columns, void* out) const;
  /// c [rows][columns] = the product of panels that begin at column `first`.
  void multiply(const Product& product, const PackedWeight& weight, int first, int count, float* c,
                float* scratch) const;

  DType dtype_;
  int num_threads_;
  const Kernels& kernels_;
  AlignedBuffer scratch_;  // per thread
  int slice_bytes_;
  std::vector<std::int64_t> first_panel_;  // of each product in the sequence, and their number
  std::vector<Product> products_;          // of run() with rows that lie together, and their rows:
  std::vector<const void*> in_;
  std::vector<void*> out_;
};

}  // namespace atl::compute
