#include "compute/cpu/panel_gemm.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "compute/cpu/memory.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

static_assert(tile_rows == panel_gemm_rows);

/// Sums of a piece, which stay in L2.
constexpr std::int64_t sums_floats = std::int64_t{tile_rows} * 256;
constexpr std::int64_t thread_floats = panel_scratch_floats + 2 * sums_floats;

/// Of a weight of codes behind its panels.
constexpr std::int64_t special_bytes = 64;

/// So many panels keep one row's chains of multiply-adds busy.
constexpr std::int64_t fewest_panels = 4;

/// A sequence of which threads take pieces: each a share of what is left, so that all end together.
class Pieces {
 public:
  Pieces(std::int64_t count, int threads, std::int64_t fewest, std::int64_t most)
      : count_(count), parts_(threads == 1 ? 1 : 2 * threads), fewest_(fewest), most_(most) {}

  /// Calls body(begin, end) for pieces until nothing is left.
  template <class Body>
  void take(const Body& body) {
    std::int64_t begin = next_.load(std::memory_order_relaxed);
    while (begin < count_) {
      const std::int64_t share = std::clamp((count_ - begin) / parts_, fewest_, most_);
      const std::int64_t end = std::min(begin + share, count_);
      if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
      body(begin, end);
      begin = next_.load(std::memory_order_relaxed);
    }
  }

 private:
  const std::int64_t count_;
  const std::int64_t parts_;
  const std::int64_t fewest_;
  const std::int64_t most_;
  std::atomic<std::int64_t> next_{0};
};

/// What of a panel stays in L1 beside the rows of a block.
int slice_bytes_of_this_cpu() {
  constexpr long roomy = 48 << 10;
  return sysconf(_SC_LEVEL1_DCACHE_SIZE) >= roomy ? max_panel_slice_bytes
                                                  : max_panel_slice_bytes / 2;
}

}  // namespace

PanelGemm::PanelGemm(DType dtype, int num_threads, CpuIsa isa)
    : dtype_(dtype),
      num_threads_(num_threads),
      kernels_(kernels_for(dtype, isa)),
      slice_bytes_(slice_bytes_of_this_cpu()) {
  // A pass has at most one product a row, and allocates nothing.
  first_panel_.reserve(most_rows_at_once + 1);
  in_.reserve(most_rows_at_once);
  out_.reserve(most_rows_at_once);
  products_.reserve(most_rows_at_once / tile_rows);
}

std::int64_t PanelGemm::packed_bytes(int n, int k) const {
  return panels_of(n) * panel_bytes(k);
}

PackedWeight PanelGemm::pack(const void* weight, int n, int k) {
  PackedWeight packed(n, k, static_cast<std::size_t>(packed_bytes(n, k)));
  parallel_ranges(num_threads_, panels_of(n), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t panel = begin; panel < end; ++panel) {
      kernels_.pack_panel(weight, n, k, static_cast<int>(panel),
                          static_cast<char*>(packed.data()) + panel * panel_bytes(k));
    }
  });
  return packed;
}

std::int64_t PanelGemm::bytes_of_codes(int n, int k, const Coding& coding) const {
  // Behind the panels: whether any is special, which experts that move take along.
  return panels_of(n) * panel_bytes(k, coding) + special_bytes;
}

PackedWeight PanelGemm::pack_codes(const HostTensor& weight) {
  const auto n = static_cast<int>(weight.rows);
  const auto k = static_cast<int>(weight.cols);
  const std::int64_t bytes = bytes_of_codes(n, k, weight.coding);
  PackedWeight packed(n, k, static_cast<std::size_t>(bytes));
  packed.coding = weight.coding;
  packed.rounded = weight.dtype;
  const std::int64_t each = panel_bytes(k, weight.coding);
  std::atomic<bool> special = false;
  parallel_ranges(num_threads_, panels_of(n), 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t panel = begin; panel < end; ++panel) {
      void* to = static_cast<char*>(packed.data()) + panel * each;
      if (kernels_.pack_codes(weight, static_cast<int>(panel), to)) special = true;
    }
  });
  static_cast<char*>(packed.data())[bytes - special_bytes] = special ? 1 : 0;
  return packed;
}

std::int64_t PanelGemm::buffer_bytes(std::span<const GemmUse> uses) const {
  return uses.empty() ? 0 : num_threads_ * thread_floats * static_cast<std::int64_t>(sizeof(float));
}

void PanelGemm::prepare(const PackedWeight& weight, Finish finish) {
  if (scratch_.bytes() > 0) return;
  const GemmUse use{weight.n(), weight.k(), finish};
  scratch_ = AlignedBuffer(static_cast<std::size_t>(buffer_bytes({&use, 1})));
  scratch_.touch(static_cast<std::size_t>(scratch_.bytes()));
}

void PanelGemm::run(std::span<const Product> products) {
  int most_rows = 1;
  first_panel_.assign(1, 0);
  for (const Product& product : products) {
    first_panel_.push_back(first_panel_.back() + panels_of(product.weight->n()));
    most_rows = std::max(most_rows, product.rows);
  }
  const std::int64_t fewest = most_rows < fewest_panels ? fewest_panels : 1;
  const std::int64_t all = first_panel_.back();
  const auto threads =
      static_cast<int>(std::min<std::int64_t>(num_threads_, (all + fewest - 1) / fewest));
  Pieces pieces(all, threads, fewest, sums_floats / most_rows / kernels_.panel_columns);
  parallel_ranges(threads, threads, 1, [&](std::int64_t, std::int64_t, int thread) {
    pieces.take([&](std::int64_t begin, std::int64_t end) {
      run_panels(products, begin, end, scratch_.as<float>() + thread * thread_floats);
    });
  });
}

void PanelGemm::run_panels(std::span<const Product> products, std::int64_t begin, std::int64_t end,
                           float* scratch) const {
  const auto after = std::upper_bound(first_panel_.begin(), first_panel_.end(), begin);
  for (auto i = static_cast<std::size_t>(after - first_panel_.begin() - 1); begin < end; ++i) {
    const std::int64_t stop = std::min(end, first_panel_[i + 1]);
    run_task(products[i], static_cast<int>(begin - first_panel_[i]), static_cast<int>(stop - begin),
             scratch);
    begin = stop;
  }
}

void PanelGemm::multiply(const Product& product, const PackedWeight& weight, int first, int count,
                         float* c, float* scratch) const {
  PanelTask task;
  task.rows = product.in;
  task.num_rows = product.rows;
  task.k = weight.k();
  const auto* panels = static_cast<const char*>(weight.data());
  task.panels = panels + first * panel_bytes(weight.k(), weight.coding);
  if (weight.coding.used()) {
    task.coding = weight.coding;
    task.rounded = weight.rounded;
    task.special = panels[weight.bytes() - special_bytes] != 0;
  }
  task.num_panels = count;
  task.c = c;
  task.c_stride = std::int64_t{count} * kernels_.panel_columns;
  task.scratch = scratch;
  task.slice_bytes = slice_bytes_;
  kernels_.panel_gemm(task);
}

void PanelGemm::run_task(const Product& product, int first, int count, float* scratch) const {
  float* sums = scratch + panel_scratch_floats;
  float* gate = sums + sums_floats;
  multiply(product, *product.weight, first, count, sums, scratch);
  if (product.gate != nullptr) multiply(product, *product.gate, first, count, gate, scratch);
  const std::int64_t column = first * kernels_.panel_columns;
  const std::int64_t stride = std::int64_t{count} * kernels_.panel_columns;
  const std::int64_t columns = std::min<std::int64_t>(stride, product.weight->n() - column);
  const std::size_t element = result_bytes(product.finish);
  for (int r = 0; r < product.rows; ++r) {
    void* out = static_cast<char*>(product.out[r]) + static_cast<std::size_t>(column) * element;
    finish_row(product, sums + r * stride, gate + r * stride, column, columns, out);
  }
}

void PanelGemm::finish_row(const Product& product, float* sums, float* gate, std::int64_t column,
                           std::int64_t columns, void* out) const {
  const Extras& extras = product.extras;
  if (extras.bias != nullptr) kernels_.add_floats(sums, extras.bias + column, columns);
  if (extras.gate_bias != nullptr) kernels_.add_floats(gate, extras.gate_bias + column, columns);
  switch (product.finish) {
    case Finish::float32:
      std::memcpy(out, sums, static_cast<std::size_t>(columns) * sizeof(float));
      break;
    case Finish::rounded:
      kernels_.from_float(sums, out, columns);
      break;
    case Finish::add:
      kernels_.from_float(sums, gate, columns);
      kernels_.add(static_cast<float*>(out), gate, columns);
      break;
    case Finish::gelu:
      kernels_.gelu(sums, out, columns);
      break;
    case Finish::swiglu:
      kernels_.from_float(sums, out, columns);
      kernels_.swiglu(gate, out, out, columns);
      break;
    case Finish::swiglu_clamped:
      kernels_.from_float(sums, out, columns);
      kernels_.swiglu_clamped(gate, out, out, columns, extras.clamp_limit, extras.clamp_alpha);
      break;
  }
}

void PanelGemm::run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out,
                    Finish finish, const float* bias) {
  const auto in_bytes = static_cast<std::int64_t>(size_of(dtype_)) * weight.k();
  const auto out_bytes = static_cast<std::int64_t>(result_bytes(finish)) * weight.n();
  for (std::int64_t first = 0; first < rows; first += most_rows_at_once) {
    const std::int64_t end = std::min<std::int64_t>(rows, first + most_rows_at_once);
    in_.clear();
    out_.clear();
    products_.clear();
    for (std::int64_t r = first; r < end; ++r) {
      in_.push_back(static_cast<const char*>(in) + r * in_bytes);
      out_.push_back(static_cast<char*>(out) + r * out_bytes);
    }
    for (std::int64_t r = first; r < end; r += tile_rows) {
      const int count = static_cast<int>(std::min<std::int64_t>(tile_rows, end - r));
      products_.push_back({&weight,
                           nullptr,
                           finish,
                           count,
                           in_.data() + r - first,
                           out_.data() + r - first,
                           {bias, nullptr, 0, 0}});
    }
    run(products_);
  }
}

std::string PanelGemm::description() const {
  const bool pairs = kernels_.panel_step > 1;
  return fmt::format("GEMMs of its own, {} {} ({})", name_of(dtype_),
                     pairs ? "pairs" : "weights times float32", name_of(cpu_isa()));
}

}  // namespace atl::compute
