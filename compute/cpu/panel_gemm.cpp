#include "compute/cpu/panel_gemm.hpp"

#include <cmath>
#include <cstring>

#include "compute/cpu/memory.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

static_assert(tile_rows == panel_gemm_rows);

/// Most columns of a task: its sums stay in L2.
constexpr int task_columns = 256;
/// So many panels keep one row's chains of multiply-adds busy.
constexpr int fewest_panels = 4;
/// What widening the rows, which each task does for itself, costs, as a number of panels.
constexpr double widening_in_panels = 0.16;

constexpr std::int64_t sums_floats = std::int64_t{tile_rows} * task_columns;
constexpr std::int64_t thread_floats = panel_scratch_floats + 2 * sums_floats;

}  // namespace

PanelGemm::PanelGemm(DType dtype, int num_threads)
    : dtype_(dtype), num_threads_(num_threads), kernels_(kernels_for(dtype, cpu_isa())) {}

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

std::int64_t PanelGemm::buffer_bytes(std::span<const GemmUse> uses) const {
  return uses.empty() ? 0 : num_threads_ * thread_floats * static_cast<std::int64_t>(sizeof(float));
}

void PanelGemm::prepare(const PackedWeight& weight, Finish finish) {
  if (scratch_.bytes() > 0) return;
  const GemmUse use{weight.n(), weight.k(), finish};
  scratch_ = AlignedBuffer(static_cast<std::size_t>(buffer_bytes({&use, 1})));
}

void PanelGemm::plan(std::span<const Product> products) {
  const int most = task_columns / kernels_.panel_columns;
  double least = 0;
  // The fewest tasks that keep all threads busy up to an even end.
  for (int panels = most; panels >= fewest_panels; panels /= 2) {
    double tasks = 0;  // as many as if all had the rows of the largest
    int most_rows = 1;
    for (const Product& product : products) most_rows = std::max(most_rows, product.rows);
    for (const Product& product : products) {
      const int count = (panels_of(product.weight->n()) + panels - 1) / panels;
      tasks += static_cast<double>(count) * product.rows / most_rows;
    }
    const double rounds = num_threads_ == 1 ? tasks : std::ceil(tasks / num_threads_) + 0.25;
    const double time = rounds * (panels + widening_in_panels);
    if (panels == most || time < least) {
      least = time;
      panels_per_task_ = panels;
    }
  }
  first_task_.assign(1, 0);
  for (const Product& product : products) {
    const int count = (panels_of(product.weight->n()) + panels_per_task_ - 1) / panels_per_task_;
    first_task_.push_back(first_task_.back() + count);
  }
}

void PanelGemm::run(std::span<const Product> products) {
  plan(products);
  parallel_tasks(num_threads_, first_task_.back(), [&](std::int64_t task, int thread) {
    const auto after = std::upper_bound(first_task_.begin(), first_task_.end(), task);
    const auto index = static_cast<std::size_t>(after - first_task_.begin() - 1);
    const Product& product = products[index];
    const int first = static_cast<int>(task - first_task_[index]) * panels_per_task_;
    run_task(product, first, std::min(panels_per_task_, panels_of(product.weight->n()) - first),
             scratch_.as<float>() + thread * thread_floats);
  });
}

void PanelGemm::multiply(const Product& product, const PackedWeight& weight, int first, int count,
                         float* c, float* scratch) const {
  PanelTask task;
  task.rows = product.in;
  task.num_rows = product.rows;
  task.k = weight.k();
  task.panels = static_cast<const char*>(weight.data()) + first * panel_bytes(weight.k());
  task.num_panels = count;
  task.c = c;
  task.c_stride = std::int64_t{count} * kernels_.panel_columns;
  task.scratch = scratch;
  kernels_.panel_gemm(task);
}

void PanelGemm::run_task(const Product& product, int first, int count, float* scratch) const {
  float* sums = scratch + panel_scratch_floats;
  float* gate = sums + sums_floats;
  multiply(product, *product.weight, first, count, sums, scratch);
  if (product.finish == Finish::swiglu) {
    multiply(product, *product.gate, first, count, gate, scratch);
  }
  const int column = first * kernels_.panel_columns;
  const std::int64_t stride = std::int64_t{count} * kernels_.panel_columns;
  const std::int64_t columns = std::min<std::int64_t>(stride, product.weight->n() - column);
  const std::size_t element = product.finish == Finish::float32 ? sizeof(float) : size_of(dtype_);
  for (int r = 0; r < product.rows; ++r) {
    const float* row = sums + r * stride;
    void* out = static_cast<char*>(product.out[r]) + static_cast<std::size_t>(column) * element;
    switch (product.finish) {
      case Finish::float32:
        std::memcpy(out, row, static_cast<std::size_t>(columns) * sizeof(float));
        break;
      case Finish::rounded:
        kernels_.from_float(row, out, columns);
        break;
      case Finish::add:
        kernels_.from_float(row, gate, columns);
        kernels_.add(out, gate, columns);
        break;
      case Finish::gelu:
        kernels_.gelu(row, out, columns);
        break;
      case Finish::swiglu:
        kernels_.from_float(row, out, columns);
        kernels_.swiglu(gate + r * stride, out, out, columns);
        break;
    }
  }
}

void PanelGemm::run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out,
                    Finish finish) {
  const std::size_t in_bytes = size_of(dtype_) * static_cast<std::size_t>(weight.k());
  const std::size_t out_bytes = (finish == Finish::float32 ? sizeof(float) : size_of(dtype_)) *
                                static_cast<std::size_t>(weight.n());
  in_.clear();
  out_.clear();
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    in_.push_back(static_cast<const char*>(in) + r * in_bytes);
    out_.push_back(static_cast<char*>(out) + r * out_bytes);
  }
  products_.clear();
  for (std::int64_t r = 0; r < rows; r += tile_rows) {
    const int count = static_cast<int>(std::min<std::int64_t>(tile_rows, rows - r));
    products_.push_back({&weight, nullptr, finish, count, in_.data() + r, out_.data() + r});
  }
  run(products_);
}

std::string PanelGemm::description() const {
  return fmt::format("GEMMs of its own, {} weights times float32 ({})", name_of(dtype_),
                     name_of(cpu_isa()));
}

}  // namespace atl::compute
