// Writing model files: the layout is made collectively, slabs go out independently, and close()
// agrees on success before the file gets its name.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "compute/error.hpp"
#include "io/attachments.hpp"
#include "io/hdf5_handle.hpp"
#include "io/model_file.hpp"
#include "io/parallel_file.hpp"

namespace atl::io {
namespace {

constexpr std::int64_t max_transfer_bytes = 1 << 30;  // MPI-IO counts bytes in an int

}  // namespace

struct ModelFileWriter::Impl {
  struct Output {
    Handle data;
    DatasetInfo info;
    std::size_t first_slab = 0;  ///< among the slabs of all datasets
  };

  Impl(std::string output_path, int mpi_comm_f)
      : path(std::move(output_path)), writers(mpi_comm_f) {}
  ~Impl();

  std::string path;
  Writers writers;
  std::string temporary;  ///< empty: there is no temporary file
  std::string what;       ///< start of this file's messages
  std::string failure;    ///< this rank's
  Handle file;
  std::vector<Output> outputs;
  std::vector<std::uint64_t> checksums;      ///< [slabs of all datasets]; 0 where not written
  std::vector<std::uint64_t> times_written;  ///< the same

  void create(const std::string& config_json, DType dtype, const std::vector<Dataset>& datasets,
              const std::vector<Attachment>& attachments);
  void make_groups(const std::vector<std::string>& paths);
  void make_dataset(const Dataset& dataset, DType dtype);
  void write(Output& output, std::int64_t slab, std::span<const std::byte> bytes);
  void write_rows(const Output& output, std::int64_t slab, std::int64_t first, std::int64_t count,
                  const std::byte* bytes);
  void require_all_written() const;
  bool close_handles();
  /// Throws on all ranks when one has an error, after removing the file.
  void agree(const std::string& error);
};

ModelFileWriter::Impl::~Impl() {
  if (temporary.empty()) return;
  // An unclosed writer. Closing a parallel file is collective, and the other ranks may be
  // elsewhere: leave it to the end of the process.
  if (!writers.alone()) {
    for (Output& output : outputs) output.data.release();
    file.release();
  }
  unlink(temporary.c_str());
}

void ModelFileWriter::Impl::agree(const std::string& error) {
  throw_agreed(writers, error, temporary, [this] { close_handles(); });
}

bool ModelFileWriter::Impl::close_handles() {
  bool closed = true;
  for (Output& output : outputs) closed = output.data.close() && closed;
  return file.close() && closed;
}

void ModelFileWriter::Impl::create(const std::string& config_json, DType dtype,
                                   const std::vector<Dataset>& datasets,
                                   const std::vector<Attachment>& attachments) {
  temporary = path + writers.broadcast(random_suffix());
  what = fmt::format("cannot write {}", path);
  agree(error_of([&] {
    if (writers.first()) create_exclusively(path, temporary);
  }));
  agree(error_of([&] {
    file = make_file(temporary, writers, what);
    const Handle root = checked(H5Gopen2(file.get(), "/", H5P_DEFAULT), what);
    write_text_attribute(root.get(), "format", model_format);
    make_u64_attribute(root.get(), "format_version", 1);
    const auto any = [&](const auto& has) {
      return std::any_of(datasets.begin(), datasets.end(), [&](const Dataset& dataset) {
        return has(dataset.dtype.value_or(dtype));
      });
    };
    const bool coded = any([](DType type) { return type == DType::uint8; });
    const bool mixed = any([dtype](DType type) { return type != dtype; });
    const std::uint64_t* version = coded                 ? &coded_model_format_version
                                   : mixed               ? &mixed_model_format_version
                                   : attachments.empty() ? &plain_model_format_version
                                                         : &model_format_version;
    set_u64_attribute(root.get(), "format_version", version);
    write_text_attribute(root.get(), "config", config_json);
    std::vector<std::string> paths;
    for (const Attachment& attachment : attachments) paths.push_back(attachment.path);
    for (const Dataset& dataset : datasets) paths.push_back(dataset.path);
    make_groups(paths);
    // Before the tensors, so that the last of these ends where the file does.
    for (const Attachment& attachment : attachments) {
      make_attachment(file.get(), attachment, writers.first(), what);
    }
    for (const Dataset& dataset : datasets) {
      make_dataset(dataset, dataset.dtype.value_or(dtype));
    }
  }));
  agree(error_of([&] {
    // Not H5Fget_filesize: the parallel driver no longer knows the size once the metadata cache has
    // spilled.
    hsize_t bytes = 0;
    for (const Output& output : outputs) {
      bytes = std::max<hsize_t>(
          bytes, H5Dget_offset(output.data.get()) + H5Dget_storage_size(output.data.get()));
    }
    if (writers.first()) reserve_room(path, temporary, bytes);
  }));
}

void ModelFileWriter::Impl::make_groups(const std::vector<std::string>& paths) {
  const Handle creation = checked(H5Pcreate(H5P_GROUP_CREATE), what);
  check(H5Pset_obj_track_times(creation.get(), false), what);
  // Links stay in the group's header, however many layers: the indexed storage of large groups is
  // laid out differently by the parallel and the plain driver.
  check(H5Pset_link_phase_change(creation.get(), 65535, 65535), what);
  std::set<std::string> made;
  for (const std::string& path_in_file : paths) {
    for (std::size_t slash = path_in_file.find('/', 1); slash != std::string::npos;
         slash = path_in_file.find('/', slash + 1)) {
      const std::string group = path_in_file.substr(0, slash);
      if (!made.insert(group).second) continue;
      checked(H5Gcreate2(file.get(), group.c_str(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
              what);
    }
  }
}

void ModelFileWriter::Impl::make_dataset(const Dataset& dataset, DType dtype) {
  require(!dataset.shape.empty() && dataset.per_expert == (dataset.shape.size() == 3),
          "{}: dataset {}: stacked experts have three dimensions, other tensors one or two", what,
          dataset.path);
  const std::string problem = fmt::format("{}: dataset {}", what, dataset.path);
  const Handle creation = checked(H5Pcreate(H5P_DATASET_CREATE), problem);
  check(H5Pset_obj_track_times(creation.get(), false), problem);
  check(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), problem);
  check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), problem);
  check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), problem);
  const std::vector<hsize_t> extents(dataset.shape.begin(), dataset.shape.end());
  const Handle space =
      checked(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), problem);
  Output output;
  output.data = checked(H5Dcreate2(file.get(), dataset.path.c_str(), file_type(dtype).get(),
                                   space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                        problem);
  output.info = {dataset.path, dataset.shape, dtype, {}, dataset.per_expert};
  output.first_slab = checksums.size();
  const auto num_slabs = static_cast<std::size_t>(output.info.num_slabs());
  make_u64_attribute(output.data.get(), checksum_attribute, num_slabs);
  checksums.resize(checksums.size() + num_slabs, 0);
  times_written.resize(checksums.size(), 0);
  outputs.push_back(std::move(output));
}

/// Writes `count` entries, starting at `first`, of the first dimension that a slab spans.
void ModelFileWriter::Impl::write_rows(const Output& output, std::int64_t slab, std::int64_t first,
                                       std::int64_t count, const std::byte* bytes) {
  const DatasetInfo& info = output.info;
  const std::string problem = fmt::format("{}: dataset {}", what, info.path);
  std::vector<hsize_t> start(info.shape.size(), 0);
  std::vector<hsize_t> extent(info.shape.begin(), info.shape.end());
  const std::size_t rows_dim = info.per_expert ? 1 : 0;
  if (info.per_expert) {
    start[0] = static_cast<hsize_t>(slab);
    extent[0] = 1;
  }
  start[rows_dim] = static_cast<hsize_t>(first);
  extent[rows_dim] = static_cast<hsize_t>(count);
  const Handle space = checked(H5Dget_space(output.data.get()), problem);
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                            nullptr),
        problem);
  hsize_t elements = 1;
  for (hsize_t e : extent) elements *= e;
  const Handle memory = checked(H5Screate_simple(1, &elements, nullptr), problem);
  check(H5Dwrite(output.data.get(), file_type(info.dtype).get(), memory.get(), space.get(),
                 H5P_DEFAULT, bytes),
        problem + ": is the disk full?");
}

void ModelFileWriter::Impl::write(Output& output, std::int64_t slab,
                                  std::span<const std::byte> bytes) {
  const std::int64_t num_rows = output.info.shape[output.info.per_expert ? 1 : 0];
  const std::int64_t row_bytes = output.info.slab_bytes() / num_rows;
  const std::int64_t rows_at_once = std::max<std::int64_t>(1, max_transfer_bytes / row_bytes);
  for (std::int64_t row = 0; row < num_rows; row += rows_at_once) {
    write_rows(output, slab, row, std::min(rows_at_once, num_rows - row),
               bytes.data() + row * row_bytes);
  }
}

void ModelFileWriter::Impl::require_all_written() const {
  for (const Output& output : outputs) {
    for (std::int64_t slab = 0; slab < output.info.num_slabs(); ++slab) {
      const std::uint64_t times = times_written[output.first_slab + static_cast<std::size_t>(slab)];
      require(times == 1, "{}: dataset {}, slab {} was written {} times, must be once", what,
              output.info.path, slab, times);
    }
  }
}

ModelFileWriter::ModelFileWriter(const std::string& path, const std::string& config_json,
                                 DType dtype, const std::vector<Dataset>& datasets, int mpi_comm_f,
                                 const std::vector<Attachment>& attachments)
    : impl_(std::make_unique<Impl>(path, mpi_comm_f)) {
  prepare_hdf5();
  impl_->create(config_json, dtype, datasets, attachments);
}

ModelFileWriter::~ModelFileWriter() = default;

void ModelFileWriter::write_slab(std::size_t dataset, std::int64_t slab,
                                 std::span<const std::byte> bytes) {
  require(dataset < impl_->outputs.size(), "{}: there is no dataset {}", impl_->what, dataset);
  Impl::Output& output = impl_->outputs[dataset];
  require(slab >= 0 && slab < output.info.num_slabs(), "{}: dataset {} has slabs 0 to {}, not {}",
          impl_->what, output.info.path, output.info.num_slabs() - 1, slab);
  require(bytes.size() == static_cast<std::size_t>(output.info.slab_bytes()),
          "{}: dataset {}: a slab has {} bytes, not {}", impl_->what, output.info.path,
          output.info.slab_bytes(), bytes.size());
  impl_->write(output, slab, bytes);
  const std::size_t place = output.first_slab + static_cast<std::size_t>(slab);
  impl_->checksums[place] = checksum_of(bytes);
  ++impl_->times_written[place];
}

void ModelFileWriter::set_failed(const std::string& reason) {
  if (impl_->failure.empty()) impl_->failure = reason;
}

void ModelFileWriter::close() {
  Impl& impl = *impl_;
  require(!impl.temporary.empty(), "{}: the writer is closed already", impl.what);
  impl.agree(impl.failure);
  // Each slab has one writer and is 0 elsewhere, so that the sum is its checksum.
  impl.writers.add_up(impl.checksums);
  impl.writers.add_up(impl.times_written);
  impl.agree(error_of([&] { impl.require_all_written(); }));
  impl.agree(error_of([&] {
    for (const Impl::Output& output : impl.outputs) {
      set_u64_attribute(output.data.get(), checksum_attribute, &impl.checksums[output.first_slab]);
    }
    check(H5Fflush(impl.file.get(), H5F_SCOPE_GLOBAL), impl.what + ": is the disk full?");
    if (!impl.close_handles()) fail("{}: is the disk full? (HDF5: {})", impl.what, hdf5_error());
  }));
  impl.agree(error_of([&] {
    if (impl.writers.first()) publish(impl.temporary, impl.path);
  }));
  impl.temporary.clear();
}

}  // namespace atl::io
