#include "io/activation_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "compute/error.hpp"
#include "io/parallel_file.hpp"

namespace atl::io {

namespace {

constexpr std::uint64_t format_version = 2;            // 1 had x in the type of the activations
constexpr std::int64_t max_transfer_floats = 1 << 28;  // MPI-IO counts bytes in an int
constexpr std::size_t longest_id = 4096;

std::string layer_path(int layer) {
  return fmt::format("/layers/{}", layer);
}

/// Contiguous storage that is there from the start, so that every rank may write its rows; what
/// nobody writes reads as zero.
Handle make_dataset(hid_t file, const std::string& path, const Handle& type,
                    const std::vector<hsize_t>& extents, const std::string& what) {
  const Handle creation = checked(H5Pcreate(H5P_DATASET_CREATE), what);
  check(H5Pset_obj_track_times(creation.get(), false), what);
  check(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), what);
  check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), what);
  check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), what);
  const Handle space =
      checked(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), what);
  return checked(H5Dcreate2(file, path.c_str(), type.get(), space.get(), H5P_DEFAULT,
                            creation.get(), H5P_DEFAULT),
                 what);
}

Handle copy_of(hid_t type, const std::string& what) {
  return checked(H5Tcopy(type), what);
}

/// Strings of one length, filled up with zeros.
Handle text_type(std::size_t length, const std::string& what) {
  Handle type = copy_of(H5T_C_S1, what);
  check(H5Tset_size(type.get(), std::max<std::size_t>(length, 1)), what);
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), what);
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), what);
  return type;
}

/// Entries [first, first + count) of the first dimension of a dataset.
struct Selection {
  Selection(hid_t dataset, std::int64_t first, std::int64_t count, std::int64_t width,
            const std::string& what) {
    file = checked(H5Dget_space(dataset), what);
    const hsize_t start[2] = {static_cast<hsize_t>(first), 0};
    const hsize_t extent[2] = {static_cast<hsize_t>(count), static_cast<hsize_t>(width)};
    check(H5Sselect_hyperslab(file.get(), H5S_SELECT_SET, start, nullptr, extent, nullptr), what);
    const hsize_t elements = extent[0] * extent[1];
    memory = checked(H5Screate_simple(1, &elements, nullptr), what);
  }
  Handle file, memory;
};

void write_rows(hid_t dataset, hid_t type, std::int64_t first, std::int64_t count,
                std::int64_t width, const void* data, const std::string& what) {
  const Selection rows(dataset, first, count, width, what);
  check(H5Dwrite(dataset, type, rows.memory.get(), rows.file.get(), H5P_DEFAULT, data),
        what + ": is the disk full?");
}

void read_rows(hid_t dataset, hid_t type, std::int64_t first, std::int64_t count,
               std::int64_t width, void* data, const std::string& what) {
  if (count == 0) return;
  const Selection rows(dataset, first, count, width, what);
  check(H5Dread(dataset, type, rows.memory.get(), rows.file.get(), H5P_DEFAULT, data), what);
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
  void fill_index();
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
    const Handle creation = checked(H5Pcreate(H5P_GROUP_CREATE), what);
    check(H5Pset_obj_track_times(creation.get(), false), what);
    check(H5Pset_link_phase_change(creation.get(), 65535, 65535), what);
    for (const char* group : {"/layers", "/requests"}) {
      checked(H5Gcreate2(file.get(), group, H5P_DEFAULT, creation.get(), H5P_DEFAULT), what);
    }
    const auto rows = static_cast<hsize_t>(layout.total_rows());
    for (const int layer : layout.layers) {
      x.push_back(make_dataset(file.get(), layer_path(layer), file_type(DType::float32),
                               {rows, static_cast<hsize_t>(layout.hidden)}, what));
    }
    tokens = make_dataset(file.get(), "/tokens", copy_of(H5T_STD_I32LE, what), {rows}, what);
    counts = make_dataset(file.get(), "/requests/num_rows", copy_of(H5T_STD_I64LE, what),
                          {layout.requests.size()}, what);
    fill_index();
  }));
  num_rows.resize(layout.requests.size(), 0);
}

/// Who owns which rows: made by all ranks, written by the first.
void ActivationWriter::Impl::fill_index() {
  std::size_t longest = 1;
  for (const std::string& id : layout.requests) {
    longest = std::max(longest, std::min(id.size(), longest_id));
  }
  const Handle id_type = text_type(longest, what);
  const hsize_t num_requests = layout.requests.size();
  const Handle ids = make_dataset(file.get(), "/requests/id", id_type, {num_requests}, what);
  const Handle first = make_dataset(file.get(), "/requests/first_row", copy_of(H5T_STD_I64LE, what),
                                    {num_requests + 1}, what);
  if (!writers.first()) return;
  std::string packed(longest * layout.requests.size(), '\0');
  for (std::size_t r = 0; r < layout.requests.size(); ++r) {
    layout.requests[r].copy(packed.data() + r * longest, longest);
  }
  const auto count = static_cast<std::int64_t>(num_requests);
  write_rows(ids.get(), id_type.get(), 0, count, 1, packed.data(), what);
  write_rows(first.get(), H5T_NATIVE_INT64, 0, count + 1, 1, layout.first_row.data(), what);
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
               hidden, x.data() + row * hidden, impl_->what);
  }
}

void ActivationWriter::write_tokens(std::size_t request, std::int64_t position,
                                    std::span<const std::int32_t> tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  write_rows(impl_->tokens.get(), H5T_NATIVE_INT32, impl_->layout.first_row[request] + position,
             count, 1, tokens.data(), impl_->what);
  impl_->num_rows[request] += tokens.size();
}

void ActivationWriter::close() {
  Impl& impl = *impl_;
  impl.writers.add_up(impl.num_rows);
  impl.agree(error_of([&] {
    if (impl.writers.first()) {
      write_rows(impl.counts.get(), H5T_NATIVE_UINT64, 0,
                 static_cast<std::int64_t>(impl.num_rows.size()), 1, impl.num_rows.data(),
                 impl.what);
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
  /// The dataset, of these extents (-1: any; then set), stored whole inside the file.
  Handle dataset(const std::string& name, std::vector<std::int64_t>& extents);
};

Handle ActivationReader::Impl::dataset(const std::string& name,
                                       std::vector<std::int64_t>& extents) {
  const std::string problem = fmt::format("{}: dataset {}", what, name);
  Handle data = checked(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), problem);
  const Handle space = checked(H5Dget_space(data.get()), problem);
  std::vector<hsize_t> found(extents.size());
  require(H5Sget_simple_extent_ndims(space.get()) == static_cast<int>(extents.size()),
          "{}: another number of dimensions than {}", problem, extents.size());
  check(H5Sget_simple_extent_dims(space.get(), found.data(), nullptr), problem);
  for (std::size_t dim = 0; dim < extents.size(); ++dim) {
    const auto extent = static_cast<std::int64_t>(found[dim]);
    require(extent > 0 && extent < std::int64_t{1} << 40 &&
                (extents[dim] < 0 || extents[dim] == extent),
            "{}: a dimension of {}; the file is damaged", problem, extent);
    extents[dim] = extent;
  }
  const Handle creation = checked(H5Dget_create_plist(data.get()), problem);
  require(H5Pget_layout(creation.get()) == H5D_CONTIGUOUS &&
              H5Pget_external_count(creation.get()) == 0 &&
              H5Dget_offset(data.get()) != HADDR_UNDEF,
          "{}: not stored contiguously in this file", problem);
  return data;
}

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
  std::vector<std::int64_t> extents{-1};
  const Handle ids = dataset("/requests/id", extents);
  const std::int64_t count = extents[0];
  extents[0] = count + 1;
  const Handle first = dataset("/requests/first_row", extents);
  extents[0] = count;
  const Handle filled = dataset("/requests/num_rows", extents);
  const auto num_requests = static_cast<std::size_t>(count);
  layout.first_row.resize(num_requests + 1);
  num_rows.resize(num_requests);
  read_rows(first.get(), H5T_NATIVE_INT64, 0, count + 1, 1, layout.first_row.data(), what);
  read_rows(filled.get(), H5T_NATIVE_INT64, 0, count, 1, num_rows.data(), what);
  const Handle type = checked(H5Dget_type(ids.get()), what);
  const std::size_t length = H5Tget_size(type.get());
  require(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 &&
              length > 0 && length <= longest_id,
          "{}: the requests' ids are not strings of one length; the file is damaged", what);
  std::string packed(num_requests * length, '\0');
  read_rows(ids.get(), text_type(length, what).get(), 0, count, 1, packed.data(), what);
  for (std::size_t r = 0; r < num_requests; ++r) {
    // Zeros fill what is shorter; one within an id belongs to it.
    const std::string_view id = std::string_view(packed).substr(r * length, length);
    layout.requests.emplace_back(id.substr(0, id.find_last_not_of('\0') + 1));
  }
  extents[0] = -1;
  tokens = dataset("/tokens", extents);
  bool sound = layout.first_row.front() == 0 && layout.first_row.back() == extents[0];
  for (std::size_t r = 0; r < num_requests && sound; ++r) {
    sound = layout.first_row[r] <= layout.first_row[r + 1] && num_rows[r] >= 0 &&
            num_rows[r] <= layout.first_row[r + 1] - layout.first_row[r];
  }
  require(sound, "{}: its requests' rows do not add up; the file is damaged", what);
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
    x.push_back(dataset(layer_path(layer), extents));  // all as wide as the first
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
            num_rows(request), 1, ids.data(), impl_->what);
  return ids;
}

void ActivationReader::read(std::size_t layer, std::size_t request, std::int64_t position,
                            std::int64_t rows, std::span<float> x) {
  require(position >= 0 && rows >= 0 && position + rows <= num_rows(request) &&
              x.size() == static_cast<std::size_t>(rows * impl_->layout.hidden),
          "{}: internal: {} rows from position {} asked for", impl_->what, rows, position);
  read_rows(impl_->x[layer].get(), H5T_NATIVE_FLOAT, impl_->layout.first_row[request] + position,
            rows, impl_->layout.hidden, x.data(), impl_->what);
}

}  // namespace atl::io
