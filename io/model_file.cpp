// Reading model files. The writer is in model_file_writer.cpp.

#include "io/model_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "compute/error.hpp"
#include "io/attachments.hpp"
#include "io/hdf5_handle.hpp"

namespace atl::io {

using nlohmann::json;

namespace {

constexpr int max_dims = 3;

struct LinkNames {
  std::vector<std::string> names;
  bool only_hard_links = true;
};

herr_t collect_link(hid_t /*group*/, const char* name, const H5L_info_t* info, void* data) {
  auto& links = *static_cast<LinkNames*>(data);
  links.only_hard_links = links.only_hard_links && info->type == H5L_TYPE_HARD;
  links.names.emplace_back(name);
  return 0;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void append(std::string& bytes, const void* data, std::size_t size) {
  bytes.append(static_cast<const char*>(data), size);
}

}  // namespace

std::string file_format(const std::string& path) {
  prepare_hdf5();
  check_is_hdf5(path, "a file that Atoll wrote");
  const Handle file = open_for_reading(path);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT),
                              fmt::format("cannot read {}: truncated or damaged", path));
  return read_text_attribute(
      root.get(), "format",
      fmt::format("cannot read {}: not a file of Atoll's (attribute \"format\" of /)", path));
}

std::uint64_t checksum_of(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

std::int64_t DatasetInfo::slab_elements() const {
  std::int64_t elements = 1;
  for (std::size_t dim = per_expert ? 1 : 0; dim < shape.size(); ++dim) elements *= shape[dim];
  return elements;
}

struct ModelFileReader::Impl {
  std::string path;
  std::int64_t file_bytes = 0;
  Handle file;  // until its structures are known
  int descriptor = -1;
  std::string config;
  std::vector<DatasetInfo> datasets;
  std::vector<StoredAttachment> attachments;  // by path
  std::unordered_map<std::string, std::size_t> index_of;
  std::int64_t bytes_read = 0;

  ~Impl() {
    if (descriptor >= 0) close(descriptor);
  }
  void open();
  void open_descriptor();
  void read(std::int64_t offset, std::span<std::byte> destination, const std::string& what) const;
  std::uint64_t sample() const;
  void find_datasets();
  std::pair<haddr_t, DatasetInfo> describe(hid_t dataset, const std::string& name) const;
  std::vector<std::int64_t> shape_of(hid_t dataset, const std::string& what) const;
  const DatasetInfo& find(const std::string& name) const;
  std::string text_of(const DatasetInfo& info, std::int64_t slab) const;
};

void ModelFileReader::Impl::open() {
  file_bytes = check_is_hdf5(path, "a model file made by atoll init or atoll import");
  file = open_for_reading(path);
  const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT),
                              fmt::format("cannot read {}: truncated or damaged", path));
  const std::string no_model =
      fmt::format("cannot read {}: not a model file (attribute \"format\" of /)", path);
  const std::string format = read_text_attribute(root.get(), "format", no_model);
  require(format == model_format,
          "cannot read {}: its format is \"{}\", must be \"{}\"; give a model file", path, format,
          model_format);
  const auto version =
      read_u64_attribute(root.get(), "format_version",
                         fmt::format("cannot read {}: attribute \"format_version\" of /", path));
  require(version.size() == 1 && version[0] >= plain_model_format_version &&
              version[0] <= coded_model_format_version,
          "cannot read {}: format version {}, this build reads {} to {}; create the file again",
          path, version.empty() ? 0 : version[0], plain_model_format_version,
          coded_model_format_version);
  config = read_text_attribute(root.get(), "config",
                               fmt::format("cannot read {}: attribute \"config\" of /", path));
}

/// Tensors are read as the bytes they are, without HDF5, which one thread at a time may enter.
void ModelFileReader::Impl::open_descriptor() {
  descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor >= 0) return;
  const int reason = errno;
  std::error_code ignored;
  fail("cannot read {}: {} (working directory {}); check the path", path, std::strerror(reason),
       std::filesystem::current_path(ignored).string());
}

void ModelFileReader::Impl::read(std::int64_t offset, std::span<std::byte> destination,
                                 const std::string& what) const {
  static_assert(std::endian::native == std::endian::little, "the file is little endian");
  while (!destination.empty()) {
    const ssize_t got = pread(descriptor, destination.data(), destination.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("{}: {}", what, std::strerror(errno));
    require(got > 0, "{}: the file ends there; it is truncated", what);
    offset += got;
    destination = destination.subspan(static_cast<std::size_t>(got));
  }
}

/// A checksum over a few bytes of some datasets: other weights, another sample.
std::uint64_t ModelFileReader::Impl::sample() const {
  constexpr std::size_t most = 16;
  constexpr std::size_t bytes_of_each = 64;
  std::vector<std::byte> bytes;
  const std::size_t step = std::max<std::size_t>(1, datasets.size() / most);
  for (std::size_t i = 0; i < datasets.size(); i += step) {
    const DatasetInfo& info = datasets[i];
    const auto count = std::min(bytes_of_each, static_cast<std::size_t>(info.slab_bytes()));
    bytes.resize(bytes.size() + count);
    read(info.offset, std::span(bytes).last(count),
         fmt::format("cannot read {}: dataset {}", path, info.path));
  }
  return checksum_of(bytes);
}

void ModelFileReader::Impl::find_datasets() {
  const std::string what = fmt::format("cannot list the datasets of {}", path);
  LinkNames links;
  check(H5Lvisit(file.get(), H5_INDEX_NAME, H5_ITER_NATIVE, collect_link, &links), what);
  require(links.only_hard_links, "{}: it has soft or external links; not a model file", what);
  std::vector<std::pair<haddr_t, DatasetInfo>> found;
  for (const std::string& name : links.names) {
    const Handle object = checked(H5Oopen(file.get(), name.c_str(), H5P_DEFAULT),
                                  fmt::format("{}: object /{}", what, name));
    if (H5Iget_type(object.get()) != H5I_DATASET) continue;
    const std::string dataset = "/" + name;
    if (is_attachment(dataset)) {
      attachments.push_back(
          describe_attachment(object.get(), dataset, file_bytes,
                              fmt::format("cannot read {}: dataset {}", path, dataset)));
    } else {
      found.push_back(describe(object.get(), dataset));
    }
  }
  std::ranges::sort(attachments, {}, &StoredAttachment::path);
  // The writer allocates in order of creation.
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [offset, info] : found) {
    index_of[info.path] = datasets.size();
    datasets.push_back(std::move(info));
  }
}

std::vector<std::int64_t> ModelFileReader::Impl::shape_of(hid_t dataset,
                                                          const std::string& what) const {
  const Handle space = checked(H5Dget_space(dataset), what);
  const int num_dims = H5Sget_simple_extent_ndims(space.get());
  require(num_dims >= 1 && num_dims <= max_dims, "{}: {} dimensions, must be 1 to {}", what,
          num_dims, max_dims);
  hsize_t extents[max_dims] = {};
  check(H5Sget_simple_extent_dims(space.get(), extents, nullptr), what);
  std::vector<std::int64_t> shape;
  hsize_t elements = 1;
  for (int dim = 0; dim < num_dims; ++dim) {
    // A tensor cannot hold more elements than its file has bytes, which also rules out overflow.
    require(extents[dim] > 0 && extents[dim] <= static_cast<hsize_t>(file_bytes) / elements,
            "{}: a dimension of {} does not fit a file of {} bytes; the file is damaged", what,
            extents[dim], file_bytes);
    elements *= extents[dim];
    shape.push_back(static_cast<std::int64_t>(extents[dim]));
  }
  return shape;
}

std::pair<haddr_t, DatasetInfo> ModelFileReader::Impl::describe(hid_t dataset,
                                                                const std::string& name) const {
  const std::string what = fmt::format("cannot read {}: dataset {}", path, name);
  const Handle type = checked(H5Dget_type(dataset), what);
  const Handle creation = checked(H5Dget_create_plist(dataset), what);
  require(
      H5Pget_layout(creation.get()) == H5D_CONTIGUOUS && H5Pget_external_count(creation.get()) == 0,
      "{}: not stored contiguously in this file", what);
  DatasetInfo info;
  info.path = name;
  info.dtype = dtype_of(type.get(), what);
  info.shape = shape_of(dataset, what);
  info.per_expert = info.shape.size() == 3;
  const std::int64_t bytes = info.num_slabs() * info.slab_bytes();
  const haddr_t offset = H5Dget_offset(dataset);
  require(offset != HADDR_UNDEF && bytes <= file_bytes &&
              H5Dget_storage_size(dataset) == static_cast<hsize_t>(bytes) &&
              offset <= static_cast<haddr_t>(file_bytes - bytes),
          "{}: {} {} are not all in the file of {} bytes; the file is truncated or damaged", what,
          shape_text(info.shape), name_of(info.dtype), file_bytes);
  info.checksums = read_u64_attribute(
      dataset, checksum_attribute, fmt::format("{}, attribute \"{}\"", what, checksum_attribute));
  require(static_cast<std::int64_t>(info.checksums.size()) == info.num_slabs(),
          "{}: {} checksums for {} slabs; the file is damaged", what, info.checksums.size(),
          info.num_slabs());
  info.offset = static_cast<std::int64_t>(offset);
  return {offset, std::move(info)};
}

const DatasetInfo& ModelFileReader::Impl::find(const std::string& name) const {
  const auto place = index_of.find(name);
  require(place != index_of.end(),
          "cannot read {}: it has no dataset {}; the file does not hold the model that its "
          "configuration describes",
          path, name);
  return datasets[place->second];
}

ModelFileReader::ModelFileReader(const std::string& path) : impl_(std::make_unique<Impl>()) {
  prepare_hdf5();
  impl_->path = path;
  impl_->open();
  impl_->find_datasets();
  impl_->file.close();
  impl_->open_descriptor();
}

std::string ModelFileReader::description() const {
  json datasets = json::array();
  for (const DatasetInfo& info : impl_->datasets) {
    datasets.push_back({info.path, info.shape, static_cast<int>(info.dtype), info.checksums,
                        info.per_expert, info.offset});
  }
  json attachments = json::array();
  for (const StoredAttachment& stored : impl_->attachments) {
    attachments.push_back(
        {stored.path, stored.element_bytes, stored.elements, stored.offset, stored.checksum});
  }
  const auto bytes = json::to_cbor(
      json({impl_->file_bytes, impl_->sample(), impl_->config, datasets, attachments}));
  return {bytes.begin(), bytes.end()};
}

ModelFileReader::ModelFileReader(const std::string& path, const std::string& description)
    : impl_(std::make_unique<Impl>()) {
  const json all = json::from_cbor(description);
  impl_->path = path;
  impl_->file_bytes = all[0].get<std::int64_t>();
  impl_->config = all[2].get<std::string>();
  for (const json& one : all[3]) {
    DatasetInfo info;
    info.path = one[0].get<std::string>();
    info.shape = one[1].get<std::vector<std::int64_t>>();
    info.dtype = static_cast<DType>(one[2].get<int>());
    info.checksums = one[3].get<std::vector<std::uint64_t>>();
    info.per_expert = one[4].get<bool>();
    info.offset = one[5].get<std::int64_t>();
    impl_->index_of[info.path] = impl_->datasets.size();
    impl_->datasets.push_back(std::move(info));
  }
  for (const json& one : all[4]) {
    impl_->attachments.push_back({one[0].get<std::string>(), one[1].get<int>(),
                                  one[2].get<std::int64_t>(), one[3].get<std::int64_t>(),
                                  one[4].get<std::uint64_t>()});
  }
  impl_->open_descriptor();
  struct stat status {};
  require(fstat(impl_->descriptor, &status) == 0 && status.st_size == impl_->file_bytes &&
              impl_->sample() == all[1].get<std::uint64_t>(),
          "{} is not the file that rank 0 reads (its contents differ); give all ranks the same "
          "model file",
          path);
}

ModelFileReader::~ModelFileReader() = default;

const std::string& ModelFileReader::path() const {
  return impl_->path;
}
const std::string& ModelFileReader::config_json() const {
  return impl_->config;
}
std::vector<DatasetInfo> ModelFileReader::datasets() const {
  return impl_->datasets;
}
DatasetInfo ModelFileReader::dataset(const std::string& path) const {
  return impl_->find(path);
}
std::vector<Attachment> ModelFileReader::attachments() const {
  std::vector<Attachment> all;
  for (const StoredAttachment& stored : impl_->attachments) {
    const std::string what = fmt::format("cannot read {}: dataset {}", path(), stored.path);
    Attachment& one = all.emplace_back(Attachment{stored.path, stored.element_bytes, {}});
    one.bytes.resize(static_cast<std::size_t>(stored.num_bytes()));
    impl_->read(stored.offset, std::as_writable_bytes(std::span(one.bytes)), what);
    verify_attachment(stored, one.bytes, what);
  }
  return all;
}
std::int64_t ModelFileReader::bytes_read() const {
  return impl_->bytes_read;
}

std::string ModelFileReader::Impl::text_of(const DatasetInfo& info, std::int64_t slab) const {
  return info.per_expert ? fmt::format("cannot read {}: dataset {}, slab {}", path, info.path, slab)
                         : fmt::format("cannot read {}: dataset {}", path, info.path);
}

void ModelFileReader::read_part(const DatasetInfo& dataset, std::int64_t slab, std::int64_t first,
                                std::span<std::byte> destination) {
  const DatasetInfo& info = impl_->find(dataset.path);
  const std::string what = impl_->text_of(info, slab);
  require(slab >= 0 && slab < info.num_slabs(), "{}: it has slabs 0 to {}", what,
          info.num_slabs() - 1);
  const auto bytes = static_cast<std::int64_t>(destination.size());
  require(first >= 0 && first + bytes <= info.slab_bytes(),
          "{}: bytes {} to {} asked for, the slab has {}", what, first, first + bytes,
          info.slab_bytes());
  impl_->read(info.offset + slab * info.slab_bytes() + first, destination, what);
  impl_->bytes_read += bytes;
}

void ModelFileReader::verify(const DatasetInfo& dataset, std::int64_t slab,
                             std::span<const std::byte> bytes) const {
  const DatasetInfo& info = impl_->find(dataset.path);
  const std::uint64_t expected = info.checksums.at(static_cast<std::size_t>(slab));
  const std::uint64_t found = checksum_of(bytes);
  require(found == expected,
          "{}: checksum {:016x}, must be {:016x}; the file is damaged: copy or create it again",
          impl_->text_of(info, slab), found, expected);
}

void ModelFileReader::read_slab(const DatasetInfo& dataset, std::int64_t slab,
                                std::span<std::byte> destination) {
  require(destination.size() == static_cast<std::size_t>(dataset.slab_bytes()),
          "{}: {} bytes asked for, the slab has {}", impl_->text_of(dataset, slab),
          destination.size(), dataset.slab_bytes());
  read_part(dataset, slab, 0, destination);
  verify(dataset, slab, destination);
}

std::uint64_t ModelFileReader::identity() const {
  std::string description = impl_->config;
  for (const DatasetInfo& info : impl_->datasets) {
    description +=
        fmt::format("\n{} {} {} ", info.path, name_of(info.dtype), shape_text(info.shape));
    append(description, info.checksums.data(), info.checksums.size() * sizeof(std::uint64_t));
  }
  for (const StoredAttachment& stored : impl_->attachments) {
    description += fmt::format("\n{} {:016x}", stored.path, stored.checksum);
  }
  return checksum_of(std::as_bytes(std::span(description)));
}

}  // namespace atl::io
