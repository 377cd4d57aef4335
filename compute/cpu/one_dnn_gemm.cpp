#include "compute/cpu/one_dnn_gemm.hpp"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "compute/cpu/memory.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

using Tag = dnnl::memory::format_tag;
using Type = dnnl::memory::data_type;

Type type_of(DType dtype) {
  return dtype == DType::bfloat16 ? Type::bf16 : Type::f32;
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

std::size_t index_of(int row_class) {
  return static_cast<std::size_t>(
      std::lower_bound(row_classes.begin(), row_classes.end(), row_class) - row_classes.begin());
}

/// Whether primitives are needed whose results are, or are not, rounded.
bool uses_primitives(Finish finish, bool rounded) {
  const bool gelu = finish == Finish::gelu;
  if (rounded) return finish != Finish::float32 && !gelu;
  return finish == Finish::float32 || finish == Finish::swiglu || gelu;
}

}  // namespace

int row_class_of(int rows) {
  return *std::lower_bound(row_classes.begin(), row_classes.end(), rows);
}

/// A matmul for one number of rows, with the memory objects its arguments are passed in.
struct OneDnnGemm::Primitive {
  dnnl::matmul matmul;
  dnnl::memory a;
  dnnl::memory c;
  dnnl::memory scratchpad;
};

/// Primitives of one (n, k), by whether results are rounded, and row class.
struct OneDnnGemm::Shape {
  std::array<bool, 6> prepared = {};  // by finish
  std::array<std::array<std::unique_ptr<Primitive>, row_classes.size()>, 2> primitives;
};

class OneDnnGemm::Weight final : public PackedWeight::Extra {
 public:
  static Weight& of(const PackedWeight& weight) { return static_cast<Weight&>(*weight.extra); }

  dnnl::memory memory;
  Shape* shape = nullptr;
};

OneDnnGemm::OneDnnGemm(DType dtype, int num_threads, CpuIsa isa)
    : dtype_(dtype),
      num_threads_(std::min(num_threads, most_one_dnn_threads)),
      kernels_(kernels_for(dtype, isa)),
      engine_(dnnl::engine::kind::cpu, 0),
      stream_(engine_) {}

OneDnnGemm::~OneDnnGemm() = default;

void OneDnnGemm::use_threads() const {
  omp_set_num_threads(num_threads_);
}

bool OneDnnGemm::limit_to_amx() {
  dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_amx);  // refused once it is in use
  return dnnl::get_effective_cpu_isa() == dnnl::cpu_isa::avx512_core_amx;
}

dnnl::memory::desc OneDnnGemm::layout_of(int n, int k) const {
  const Type type = type_of(dtype_);
  return describe(engine_, tile_rows, n, k, type, type, dnnl::memory::desc({k, n}, type, Tag::any))
      .weights_desc();
}

std::int64_t OneDnnGemm::packed_bytes(int n, int k) const {
  use_threads();
  return static_cast<std::int64_t>(layout_of(n, k).get_size());
}

PackedWeight OneDnnGemm::pack(const void* weight, int n, int k) {
  use_threads();
  const dnnl::memory::desc layout = layout_of(n, k);
  PackedWeight packed(n, k, layout.get_size());
  auto extra = std::make_unique<Weight>();
  extra->memory = dnnl::memory(layout, engine_, packed.data());
  auto& shape = shapes_[{n, k}];
  if (!shape) shape = std::make_unique<Shape>();
  extra->shape = shape.get();
  dnnl::memory plain({{k, n}, type_of(dtype_), Tag::ba}, engine_, const_cast<void*>(weight));
  dnnl::reorder(plain, extra->memory).execute(stream_, plain, extra->memory);
  stream_.wait();
  packed.extra = std::move(extra);
  return packed;
}

std::unique_ptr<OneDnnGemm::Primitive> OneDnnGemm::create(const PackedWeight& weight, bool rounded,
                                                          int rows) {
  const auto description =
      describe(engine_, rows, weight.n(), weight.k(), type_of(dtype_),
               rounded ? type_of(dtype_) : Type::f32, Weight::of(weight).memory.get_desc());
  auto primitive = std::make_unique<Primitive>();
  primitive->matmul = dnnl::matmul(description);
  primitive->a = dnnl::memory(description.src_desc(), engine_, nullptr);
  primitive->c = dnnl::memory(description.dst_desc(), engine_, nullptr);
  primitive->scratchpad = dnnl::memory(description.scratchpad_desc(), engine_, nullptr);
  return primitive;
}

OneDnnGemm::Buffers OneDnnGemm::buffers() const {
  return {in_.bytes(), out_.bytes(), sums_.bytes(), scratchpad_.bytes()};
}

OneDnnGemm::Buffers OneDnnGemm::widened(Buffers buffers, const GemmUse& use) const {
  const auto tile_bytes = static_cast<std::int64_t>(tile_rows * size_of(dtype_));
  if (use.finish != Finish::float32) {  // a vocabulary's would be large
    buffers.in = std::max(buffers.in, tile_bytes * use.k);
    buffers.out = std::max(buffers.out, tile_bytes * use.n);
  }
  if (use.finish == Finish::gelu || use.finish == Finish::swiglu) {
    constexpr auto tile_floats = static_cast<std::int64_t>(tile_rows * sizeof(float));
    buffers.sums = std::max(buffers.sums, tile_floats * use.n);
  }
  const dnnl::memory::desc layout = layout_of(use.n, use.k);
  for (const bool rounded : {false, true}) {
    if (!uses_primitives(use.finish, rounded)) continue;
    const Type result = rounded ? type_of(dtype_) : Type::f32;
    for (const int rows : row_classes) {
      const auto description =
          describe(engine_, rows, use.n, use.k, type_of(dtype_), result, layout);
      buffers.scratchpad = std::max(
          buffers.scratchpad, static_cast<std::int64_t>(description.scratchpad_desc().get_size()));
    }
  }
  return buffers;
}

std::int64_t OneDnnGemm::buffer_bytes(std::span<const GemmUse> uses) const {
  use_threads();
  Buffers buffers;
  for (const GemmUse& use : uses) buffers = widened(buffers, use);
  return buffers.total();
}

void OneDnnGemm::prepare(const PackedWeight& weight, Finish finish) {
  use_threads();
  Shape& shape = *Weight::of(weight).shape;
  bool& prepared = shape.prepared[static_cast<std::size_t>(finish)];
  if (prepared) return;
  prepared = true;
  const auto grow = [](AlignedBuffer& buffer, std::int64_t bytes) {
    if (buffer.bytes() < bytes) buffer = AlignedBuffer(static_cast<std::size_t>(bytes));
  };
  const Buffers needed = widened(buffers(), {weight.n(), weight.k(), finish});
  grow(in_, needed.in);
  grow(out_, needed.out);
  grow(sums_, needed.sums);
  grow(scratchpad_, needed.scratchpad);
  for (const bool rounded : {false, true}) {
    if (!uses_primitives(finish, rounded)) continue;
    auto& primitives = shape.primitives[rounded ? 1 : 0];
    for (std::size_t i = 0; i < row_classes.size(); ++i) {
      if (!primitives[i]) primitives[i] = create(weight, rounded, row_classes[i]);
    }
  }
}

void OneDnnGemm::multiply(const PackedWeight& weight, const void* in, int rows, void* out,
                          bool rounded) {
  use_threads();
  const Weight& extra = Weight::of(weight);
  Primitive& primitive = *extra.shape->primitives[rounded ? 1 : 0][index_of(rows)];
  primitive.a.set_data_handle(const_cast<void*>(in));
  primitive.c.set_data_handle(out);
  primitive.scratchpad.set_data_handle(scratchpad_.data());
  // The C interface takes the arguments as an array; the C++ one would build a map and a vector.
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, primitive.a.get()},
                                       {DNNL_ARG_WEIGHTS, extra.memory.get()},
                                       {DNNL_ARG_DST, primitive.c.get()},
                                       {DNNL_ARG_SCRATCHPAD, primitive.scratchpad.get()}};
  const dnnl_status_t status =
      dnnl_primitive_execute(primitive.matmul.get(), stream_.get(), 4, arguments);
  require(status == dnnl_success, "cannot multiply matrices (oneDNN status {})",
          static_cast<int>(status));
}

void OneDnnGemm::multiply_floats(const PackedWeight& weight, const void* in, std::int64_t rows,
                                 float* out) {
  while (rows > 0) {
    // The largest class that fits: its rows are exactly the rows written.
    const int limit = static_cast<int>(std::min<std::int64_t>(rows, tile_rows));
    const int count = *(std::upper_bound(row_classes.begin(), row_classes.end(), limit) - 1);
    multiply(weight, in, count, out, /*rounded=*/false);
    in = static_cast<const char*>(in) + std::int64_t{count} * weight.k() * size_of(dtype_);
    out += std::int64_t{count} * weight.n();
    rows -= count;
  }
}

void OneDnnGemm::run(const PackedWeight& weight, const void* in, std::int64_t rows, void* out,
                     Finish finish, const float* bias) {
  require(bias == nullptr, "internal: oneDNN's products add no bias");
  if (finish == Finish::float32) {
    return multiply_floats(weight, in, rows, static_cast<float*>(out));
  }
  const auto element = static_cast<std::int64_t>(size_of(dtype_));
  for (std::int64_t row = 0; row < rows; row += tile_rows) {
    const int count = static_cast<int>(std::min<std::int64_t>(rows - row, tile_rows));
    const char* from = static_cast<const char*>(in) + row * weight.k() * element;
    if (finish == Finish::rounded) {
      multiply(weight, from, row_class_of(count),
               static_cast<char*>(out) + row * weight.n() * element, /*rounded=*/true);
      continue;
    }
    multiply(weight, from, row_class_of(count), out_.data(), /*rounded=*/true);
    float* to = static_cast<float*>(out) + row * weight.n();
    parallel_ranges(num_threads_, std::int64_t{count} * weight.n(), grain_rows(1),
                    [&](std::int64_t begin, std::int64_t end, int) {
                      kernels_.add(to + begin, out_.as<char>() + begin * element, end - begin);
                    });
  }
}

void OneDnnGemm::finish(const Product& product) {
  const PackedWeight& weight = *product.weight;
  const int row_class = row_class_of(product.rows);
  const auto row_bytes = static_cast<std::int64_t>(size_of(dtype_)) * weight.n();
  const bool gelu = product.finish == Finish::gelu;
  if (gelu) {
    multiply(weight, in_.data(), row_class, sums_.data(), /*rounded=*/false);
  } else {
    multiply(weight, in_.data(), row_class, out_.data(), /*rounded=*/true);
  }
  if (product.finish == Finish::swiglu) {
    multiply(*product.gate, in_.data(), row_class, sums_.data(), /*rounded=*/false);
  }
  parallel_ranges(num_threads_, product.rows, grain_rows(weight.n()),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t r = begin; r < end; ++r) {
                      const float* sums = sums_.as<float>() + r * weight.n();
                      const char* rounded = out_.as<char>() + r * row_bytes;
                      if (gelu) {
                        kernels_.gelu(sums, product.out[r], weight.n());
                      } else if (product.finish == Finish::swiglu) {
                        kernels_.swiglu(sums, rounded, product.out[r], weight.n());
                      } else if (product.finish == Finish::add) {
                        kernels_.add(static_cast<float*>(product.out[r]), rounded, weight.n());
                      } else {
                        std::memcpy(product.out[r], rounded, static_cast<std::size_t>(row_bytes));
                      }
                    }
                  });
}

void OneDnnGemm::run(std::span<const Product> products) {
  for (const Product& product : products) {
    const auto row_bytes = size_of(dtype_) * static_cast<std::size_t>(product.weight->k());
    for (int r = 0; r < product.rows; ++r) {
      std::memcpy(in_.as<char>() + static_cast<std::size_t>(r) * row_bytes, product.in[r],
                  row_bytes);
    }
    finish(product);
  }
}

std::string OneDnnGemm::description() const {
  const dnnl_version_t* version = dnnl_version();
  return fmt::format("oneDNN {}.{}, {} GEMMs", version->major, version->minor, name_of(dtype_));
}

}  // namespace atl::compute
