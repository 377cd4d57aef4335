#include "io/activation_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "compute/error.hpp"
#include "io/parallel_file.hpp"
#include "io/row_datasets.hpp"

namespace atl::io {

namespace {

constexpr std::uint64_t format_version = 2;            // 1 had x in the type of the activations
constexpr std::int64_t max_transfer_floats = 1 << 28;  // MPI-IO counts bytes in an int

std::string layer_path(int layer) {
  return fmt::format("/layers/{}", layer);
}

}  // namespace

struct ActivationWriter::Impl {
  Impl(std::string p, const ActivationLayout& l, int mpi_comm_f)
      : path(std::move(p)), writers(mpi_comm_f), layout(l), what("cannot write " + path) {}
  ~Impl();

  std::string path;
  Writers writers;
  ActivationLayout layout;
  std::string what;
  std::string temporary;  ///< empty: there is no temporary file
  Handle file;
  std::vector<Handle> x;
  Handle tokens, counts;
  std::vector<std::uint64_t> num_rows;  ///< [requests], written by this rank

  void create();
  bool close_handles();
  void agree(const std::string& error);
};

ActivationWriter::Impl::~Impl() {
  if (temporary.empty()) return;
  if (!writers.alone()) {  // closing would be collective, and the other ranks may be elsewhere
    for (Handle& dataset : x) dataset.release();
    tokens.release();
    counts.release();
    file.release();
  }
  unlink(temporary.c_str());
}

bool ActivationWriter::Impl::close_handles() {
  bool closed = true;
  for (Handle& dataset : x) closed = dataset.close() && closed;
  closed = tokens.close() && closed;
  closed = counts.close() && closed;
  return file.close() && closed;
}

void ActivationWriter::Impl::agree(const std::string& error) {
  throw_agreed(writers, error, temporary, [this] { close_handles(); });
}

void ActivationWriter::Impl::create() {
  temporary = path + writers.broadcast(random_suffix());
  agree(error_of([&] {
    if (writers.first()) create_exclusively(path, temporary);
  }));
  agree(error_of([&] {
    file = make_file(temporary, writers, what);
    const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT), what);
    write_text_attribute(root.get(), "format", activations_format);
    make_u64_attribute(root.get(), "format_version", 1);
    set_u64_attribute(root.get(), "format_version", &format_version);
    write_text_attribute(root.get(), "model", layout.model);
    make_group(file.get(), "/layers", what);
    make_request_index(file.get(), layout.requests, layout.first_row, writers.first(), what);
    const auto rows = static_cast<hsize_t>(layout.total_rows());
    for (const int layer : layout.layers) {
      x.push_back(make_rows(file.get(), layer_path(layer), file_type(DType::float32),
                            {rows, static_cast<hsize_t>(layout.hidden)}, what));
    }
    tokens = make_rows(file.get(), "/tokens", copy_of(H5T_STD_I32LE, what), {rows}, what);
    counts = make_rows(file.get(), num_rows_path, copy_of(H5T_STD_I64LE, what),
                       {layout.requests.size()}, what);
  }));
  num_rows.resize(layout.requests.size(), 0);
}

ActivationWriter::ActivationWriter(const std::string& path, const ActivationLayout& layout,
                                   int mpi_comm_f)
    : impl_(std::make_unique<Impl>(path, layout, mpi_comm_f)) {
  prepare_hdf5();
  require(layout.total_rows() > 0 && !layout.layers.empty(),
          "cannot write {}: no request is served, so there are no activations", path);
  impl_->create();
}

ActivationWriter::~ActivationWriter() = default;

void ActivationWriter::write(std::size_t layer, std::size_t request, std::int64_t position,
                             std::span<const float> x) {
  const std::int64_t hidden = impl_->layout.hidden;
  const std::int64_t rows = static_cast<std::int64_t>(x.size()) / hidden;
  const std::int64_t first = impl_->layout.first_row[request] + position;
  require(first + rows <= impl_->layout.first_row[request + 1],
          "{}: internal: request {} has no position {}", impl_->what, request, position + rows - 1);
  const std::int64_t at_once = std::max<std::int64_t>(1, max_transfer_floats / hidden);
  for (std::int64_t row = 0; row < rows; row += at_once) {
    write_rows(impl_->x[layer].get(), H5T_NATIVE_FLOAT, first + row, std::min(at_once, rows - row),
               x.data() + row * hidden, impl_->what);
  }
}

void ActivationWriter::write_tokens(std::size_t request, std::int64_t position,
                                    std::span<const std::int32_t> tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  write_rows(impl_->tokens.get(), H5T_NATIVE_INT32, impl_->layout.first_row[request] + position,
             count, tokens.data(), impl_->what);
  impl_->num_rows[request] += tokens.size();
}

void ActivationWriter::close() {
  Impl& impl = *impl_;
  impl.writers.add_up(impl.num_rows);
  impl.agree(error_of([&] {
    if (impl.writers.first()) {
      write_rows(impl.counts.get(), H5T_NATIVE_UINT64, 0,
                 static_cast<std::int64_t>(impl.num_rows.size()), impl.num_rows.data(), impl.what);
    }
  }));
  impl.agree(error_of([&] {
    check(H5Fflush(impl.file.get(), H5F_SCOPE_GLOBAL), impl.what + ": is the disk full?");
    require(impl.close_handles(), "{}: is the disk full? (HDF5: {})", impl.what, hdf5_error());
  }));
  impl.agree(error_of([&] {
    if (impl.writers.first()) publish(impl.temporary, impl.path);
  }));
  impl.temporary.clear();
}

struct ActivationReader::Impl {
  std::string path;
  std::string what;
  Handle file;
  ActivationLayout layout;
  std::vector<std::int64_t> num_rows;
  std::vector<Handle> x;
  Handle tokens;

  void open();
  void read_index();
  void find_layers();
};

void ActivationReader::Impl::open() {
  check_is_hdf5(path, "an activations file made by atoll run --dump-activations");
  file = open_for_reading(path);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT), what);
  const std::string format = read_text_attribute(root.get(), "format",
                                                 what +
                                                     ": not an activations file (attribute "
                                                     "\"format\" of /)");
  require(format == activations_format,
          "cannot read {}: its format is \"{}\", must be \"{}\"; give an activations file", path,
          format, activations_format);
  const auto version = read_u64_attribute(root.get(), "format_version", what);
  require(version.size() == 1 && version[0] == format_version,
          "cannot read {}: its format version is {} and this program reads {}; write it again with "
          "--dump-activations",
          path, version.empty() ? 0 : version[0], format_version);
  layout.model = read_text_attribute(root.get(), "model", what);
  read_index();
  find_layers();
}

void ActivationReader::Impl::read_index() {
  RequestIndex index = read_request_index(file.get(), what);
  layout.requests = std::move(index.ids);
  layout.first_row = std::move(index.first_row);
  num_rows = std::move(index.num_rows);
  std::vector<std::int64_t> extents{layout.total_rows()};
  tokens = open_rows(file.get(), "/tokens", Stored::contiguously, extents, what);
}

void ActivationReader::Impl::find_layers() {
  const Handle group = checked(H5Gopen2(file.get(), "/layers", H5P_DEFAULT), what);
  const auto add = [](hid_t /*group*/, const char* name, const H5L_info_t* info,
                      void* data) -> herr_t {
    char* end = nullptr;
    const long layer = std::strtol(name, &end, 10);
    if (info->type != H5L_TYPE_HARD || *end != '\0' || layer < 0 || layer > 1 << 20) return -1;
    static_cast<std::vector<int>*>(data)->push_back(static_cast<int>(layer));
    return 0;
  };
  check(H5Literate(group.get(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, add, &layout.layers),
        what + ": its layers");
  std::sort(layout.layers.begin(), layout.layers.end());
  require(!layout.layers.empty(), "{}: no layers; the file is damaged", what);
  std::vector<std::int64_t> extents{layout.total_rows(), -1};
  for (const int layer : layout.layers) {
    x.push_back(open_rows(file.get(), layer_path(layer), Stored::contiguously, extents,
                          what));  // all as wide as the first
    const Handle type = checked(H5Dget_type(x.back().get()), what);
    const std::string of_layer = fmt::format("{}: layer {}", what, layer);
    require(dtype_of(type.get(), of_layer) == DType::float32,
            "{}: x is not in float32; the file is damaged", of_layer);
  }
  layout.hidden = extents[1];
}

ActivationReader::ActivationReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  prepare_hdf5();
  impl_->path = path;
  impl_->what = "cannot read " + path;
  impl_->open();
}

ActivationReader::~ActivationReader() = default;

const std::string& ActivationReader::path() const {
  return impl_->path;
}
const ActivationLayout& ActivationReader::layout() const {
  return impl_->layout;
}
std::int64_t ActivationReader::num_rows(std::size_t request) const {
  return impl_->num_rows[request];
}

std::vector<std::int32_t> ActivationReader::tokens(std::size_t request) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(num_rows(request)));
  read_rows(impl_->tokens.get(), H5T_NATIVE_INT32, impl_->layout.first_row[request],
            num_rows(request), ids.data(), impl_->what);
  return ids;
}

void ActivationReader::read(std::size_t layer, std::size_t request, std::int64_t position,
                            std::int64_t rows, std::span<float> x) {
  require(position >= 0 && rows >= 0 && position + rows <= num_rows(request) &&
              x.size() == static_cast<std::size_t>(rows * impl_->layout.hidden),
          "{}: internal: {} rows from position {} asked for", impl_->what, rows, position);
  read_rows(impl_->x[layer].get(), H5T_NATIVE_FLOAT, impl_->layout.first_row[request] + position,
            rows, x.data(), impl_->what);
}

}  // namespace atl::io
