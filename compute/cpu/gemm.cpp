#include "compute/cpu/gemm.hpp"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;

constexpr int panel_columns = 16;

GemmPath path_of(DType dtype, CpuIsa isa) {
  if (isa == CpuIsa::avx2) return GemmPath::float32_panels;
  if (dtype == DType::float32) return GemmPath::native;
  return dtype == DType::bfloat16 && isa >= CpuIsa::avx512_bf16 ? GemmPath::native
                                                                : GemmPath::float32;
}

Type operand_type(DType dtype, GemmPath path) {
  return path == GemmPath::native && dtype == DType::bfloat16 ? Type::bf16 : Type::f32;
}

/// The matmul of `rows` rows; a weights layout of format_tag::any asks oneDNN for its favourite.
dnnl::matmul::primitive_desc describe(const dnnl::engine& engine, int rows, int n, int k,
                                      Type operand, Type result,
                                      const dnnl::memory::desc& weights) {
  const dnnl::memory::desc a({rows, k}, operand, Tag::ab);
  const dnnl::memory::desc c({rows, n}, result, Tag::ab);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return {dnnl::matmul::desc(a, weights, c), attributes, engine};
}

}  // namespace

int row_class_of(int rows) {
  return *std::lower_bound(row_classes.begin(), row_classes.end(), rows);
}

/// A matmul for one number of rows, with the memory objects its arguments are passed in.
struct Gemm::Primitive {
  dnnl::matmul matmul;
  dnnl::memory a;
  dnnl::memory c;
  dnnl::memory scratchpad;
};

/// Primitives of one (n, k), by output and row class.
struct PackedWeight::Shape {
  std::array<bool, 2> prepared = {};
  std::array<std::array<std::unique_ptr<Gemm::Primitive>, row_classes.size()>, 2> primitives;
};

Gemm::Gemm(DType dtype, int num_threads)
    : dtype_(dtype),
      num_threads_(num_threads),
      isa_(cpu_isa()),
      path_(path_of(dtype, isa_)),
      kernels_(kernels_for(dtype, isa_)),
      engine_(dnnl::engine::kind::cpu, 0),
      stream_(engine_) {}

Gemm::~Gemm() = default;

PackedWeight::Shape& Gemm::shape_of(int n, int k) {
  auto& shape = shapes_[{n, k}];
  if (!shape) shape = std::make_unique<PackedWeight::Shape>();
  return *shape;
}

dnnl::memory::desc Gemm::layout_of(int n, int k) const {
  const Type type = operand_type(dtype_, path_);
  return describe(engine_, tile_rows, n, k, type, type, dnnl::memory::desc({k, n}, type, Tag::any))
      .weights_desc();
}

std::int64_t Gemm::packed_bytes(int n, int k) const {
  if (path_ != GemmPath::float32_panels) {
    return static_cast<std::int64_t>(layout_of(n, k).get_size());
  }
  const std::int64_t panels = (n + panel_columns - 1) / panel_columns;
  return panels * k * panel_columns * static_cast<std::int64_t>(sizeof(float));
}

PackedWeight Gemm::pack(const void* weight, int n, int k) {
  PackedWeight packed;
  packed.k_ = k;
  packed.n_ = n;
  packed.shape_ = &shape_of(n, k);
  const std::int64_t count = std::int64_t{n} * k;
  AlignedBuffer converted;
  const void* operand = weight;
  if (path_ != GemmPath::native) {
    converted = AlignedBuffer(static_cast<std::size_t>(count) * sizeof(float));
    kernels_.to_float(weight, converted.as<float>(), count);
    operand = converted.data();
  }
  if (path_ == GemmPath::float32_panels) {
    packed.buffer_ = AlignedBuffer(static_cast<std::size_t>(packed_bytes(n, k)));
    const auto* from = static_cast<const float*>(operand);
    auto* to = packed.buffer_.as<float>();
    for (std::int64_t row = 0; row < n; ++row) {
      float* column = to + row / panel_columns * k * panel_columns + row % panel_columns;
      for (std::int64_t i = 0; i < k; ++i) column[i * panel_columns] = from[row * k + i];
    }
    return packed;
  }
  const Type type = operand_type(dtype_, path_);
  const dnnl::memory::desc layout = layout_of(n, k);
  packed.buffer_ = AlignedBuffer(layout.get_size());
  packed.memory_ = dnnl::memory(layout, engine_, packed.buffer_.data());
  dnnl::memory plain({{k, n}, type, Tag::ba}, engine_, const_cast<void*>(operand));
  dnnl::reorder(plain, packed.memory_).execute(stream_, plain, packed.memory_);
  stream_.wait();
  return packed;
}

std::unique_ptr<Gemm::Primitive> Gemm::create(const PackedWeight& weight, Output output, int rows) {
  const Type operand = operand_type(dtype_, path_);
  const Type result = output == Output::float32 ? Type::f32 : operand;
  const auto description =
      describe(engine_, rows, weight.n(), weight.k(), operand, result, weight.memory_.get_desc());
  auto primitive = std::make_unique<Primitive>();
  primitive->matmul = dnnl::matmul(description);
  primitive->a = dnnl::memory(description.src_desc(), engine_, nullptr);
  primitive->c = dnnl::memory(description.dst_desc(), engine_, nullptr);
  primitive->scratchpad = dnnl::memory(description.scratchpad_desc(), engine_, nullptr);
  return primitive;
}

Gemm::Buffers Gemm::widened(Buffers buffers, int n, int k, Output output) const {
  if (path_ != GemmPath::native) {
    constexpr auto tile_floats = static_cast<std::int64_t>(tile_rows * sizeof(float));
    buffers.a = std::max(buffers.a, tile_floats * k);
    // Wide outputs (a vocabulary) go straight to the caller.
    if (output == Output::activation) buffers.c = std::max(buffers.c, tile_floats * n);
  }
  if (path_ == GemmPath::float32_panels) return buffers;
  const Type operand = operand_type(dtype_, path_);
  const Type result = rounds_itself() && output == Output::activation ? operand : Type::f32;
  const dnnl::memory::desc layout = layout_of(n, k);
  for (const int rows : row_classes) {
    const auto description = describe(engine_, rows, n, k, operand, result, layout);
    buffers.scratchpad = std::max(
        buffers.scratchpad, static_cast<std::int64_t>(description.scratchpad_desc().get_size()));
  }
  return buffers;
}

void Gemm::prepare(const PackedWeight& weight, Output output) {
  bool& prepared = weight.shape_->prepared[static_cast<std::size_t>(output)];
  if (prepared) return;
  prepared = true;
  const auto grow = [](AlignedBuffer& buffer, std::int64_t bytes) {
    if (buffer.bytes() < bytes) buffer = AlignedBuffer(static_cast<std::size_t>(bytes));
  };
  const Buffers needed = widened(buffers(), weight.n(), weight.k(), output);
  grow(a_, needed.a);
  grow(c_, needed.c);
  grow(scratchpad_, needed.scratchpad);
  if (path_ == GemmPath::float32_panels) return;
  const Output stored = rounds_itself() ? output : Output::float32;
  auto& primitives = weight.shape_->primitives[static_cast<std::size_t>(stored)];
  for (std::size_t i = 0; i < row_classes.size(); ++i) {
    if (!primitives[i]) primitives[i] = create(weight, stored, row_classes[i]);
  }
}

void Gemm::multiply(const PackedWeight& weight, const void* a, int rows, int row_class, void* c,
                    Output output) {
  if (path_ == GemmPath::float32_panels) {
    const int panels = (weight.n() + panel_columns - 1) / panel_columns;
    parallel_ranges(num_threads_, panels, 4, [&](std::int64_t begin, std::int64_t end, int) {
      kernels_.panel_gemm(static_cast<const float*>(a), weight.buffer_.as<float>(),
                          static_cast<float*>(c), rows, weight.k(), weight.n(),
                          static_cast<int>(begin), static_cast<int>(end));
    });
    return;
  }
  const auto index =
      std::lower_bound(row_classes.begin(), row_classes.end(), row_class) - row_classes.begin();
  Primitive& primitive =
      *weight.shape_->primitives[static_cast<std::size_t>(output)][static_cast<std::size_t>(index)];
  primitive.a.set_data_handle(const_cast<void*>(a));
  primitive.c.set_data_handle(c);
  primitive.scratchpad.set_data_handle(scratchpad_.data());
  // The C interface takes the arguments as an array; the C++ one would build a map and a vector.
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, primitive.a.get()},
                                       {DNNL_ARG_WEIGHTS, weight.memory_.get()},
                                       {DNNL_ARG_DST, primitive.c.get()},
                                       {DNNL_ARG_SCRATCHPAD, primitive.scratchpad.get()}};
  const dnnl_status_t status =
      dnnl_primitive_execute(primitive.matmul.get(), stream_.get(), 4, arguments);
  require(status == dnnl_success, "cannot multiply matrices (oneDNN status {})",
          static_cast<int>(status));
}

void Gemm::run_tile(const PackedWeight& weight, const void* a, int rows, int row_class, void* c,
                    Output output) {
  if (path_ == GemmPath::native) {
    return multiply(weight, a, rows, row_class, c, rounds_itself() ? output : Output::float32);
  }
  const void* operand = a;
  if (dtype_ != DType::float32) {
    kernels_.to_float(a, a_.as<float>(), std::int64_t{rows} * weight.k());
    operand = a_.data();
  }
  const bool direct = output == Output::float32 || dtype_ == DType::float32;
  void* result = direct ? c : c_.data();
  multiply(weight, operand, rows, row_class, result, Output::float32);
  if (!direct) kernels_.from_float(c_.as<float>(), c, std::int64_t{rows} * weight.n());
}

void Gemm::run(const PackedWeight& weight, const void* a, std::int64_t rows, void* c,
               Output output) {
  const std::int64_t a_stride = weight.k() * static_cast<std::int64_t>(size_of(dtype_));
  const std::int64_t c_stride =
      weight.n() * static_cast<std::int64_t>(output == Output::float32 ? 4 : size_of(dtype_));
  for (std::int64_t row = 0; row < rows; row += tile_rows) {
    const int count = static_cast<int>(std::min<std::int64_t>(rows - row, tile_rows));
    run_tile(weight, static_cast<const char*>(a) + row * a_stride, count, row_class_of(count),
             static_cast<char*>(c) + row * c_stride, output);
  }
}

void Gemm::run_exact(const PackedWeight& weight, const void* a, std::int64_t rows, float* c) {
  const std::int64_t a_stride = weight.k() * static_cast<std::int64_t>(size_of(dtype_));
  while (rows > 0) {
    // The largest class that fits: its rows are exactly the rows written.
    const int limit = static_cast<int>(std::min<std::int64_t>(rows, tile_rows));
    const int count = *(std::upper_bound(row_classes.begin(), row_classes.end(), limit) - 1);
    run_tile(weight, a, count, count, c, Output::float32);
    a = static_cast<const char*>(a) + count * a_stride;
    c += std::int64_t{count} * weight.n();
    rows -= count;
  }
}

std::string Gemm::description() const {
  const dnnl_version_t* version = dnnl_version();
  const std::string one_dnn = fmt::format("oneDNN {}.{}", version->major, version->minor);
  switch (path_) {
    case GemmPath::native:
      return fmt::format("{}, {} GEMMs ({})", one_dnn, name_of(dtype_), name_of(isa_));
    case GemmPath::float32:
      if (dtype_ == DType::float16) {
        return fmt::format("{}, float32 GEMMs (oneDNN has no float16 on CPUs)", one_dnn);
      }
      return fmt::format("{}, float32 GEMMs ({}, which has no bfloat16)", one_dnn, name_of(isa_));
    case GemmPath::float32_panels:
      break;
  }
  return "float32 GEMMs of its own (avx2, which has no bfloat16)";
}

}  // namespace atl::compute
