// Writing model files: the layout is made collectively in a file of its own, slabs go out
// independently to where the layout has them, and close() brings both together and agrees on
// success before the file gets its name. So slabs stay where they are when writing is interrupted,
// which would leave an HDF5 file that cannot be opened again.

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <set>

#include "compute/error.hpp"
#include "io/attachments.hpp"
#include "io/hdf5_handle.hpp"
#include "io/model_file.hpp"
#include "io/parallel_file.hpp"
#include "io/slab_file.hpp"

namespace atl::io {

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
  std::string temporary;          ///< with HDF5's structures alone; empty: there is none
  std::optional<SlabFile> slabs;  ///< the tensors, and in the end the whole file
  std::string what;               ///< start of this file's messages
  std::string failure;            ///< this rank's
  Handle file;
  std::vector<Output> outputs;
  std::vector<std::uint64_t> checksums;      ///< [slabs of all datasets]; 0 where not written
  std::vector<std::uint64_t> times_written;  ///< the same

  void create(const std::string& config_json, DType dtype, const std::vector<Dataset>& datasets,
              const std::vector<Attachment>& attachments, const std::string& key);
  void make_groups(const std::vector<std::string>& paths);
  void make_dataset(const Dataset& dataset, DType dtype);
  void note(const Output& output, std::int64_t slab, std::uint64_t checksum);
  void copy_structures() const;
  void require_all_written() const;
  bool close_handles();
  /// Throws Error unless there is such a slab.
  Output& output_of(std::size_t dataset, std::int64_t slab);
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
  if (slabs) slabs->remove(/*all=*/true);
}

void ModelFileWriter::Impl::agree(const std::string& error) {
  throw_agreed(writers, error, temporary, [this] {
    close_handles();
    if (slabs && writers.first()) slabs->remove(/*all=*/true);
  });
}

bool ModelFileWriter::Impl::close_handles() {
  bool closed = true;
  for (Output& output : outputs) closed = output.data.close() && closed;
  return file.close() && closed;
}

void ModelFileWriter::Impl::create(const std::string& config_json, DType dtype,
                                   const std::vector<Dataset>& datasets,
                                   const std::vector<Attachment>& attachments,
                                   const std::string& key) {
  what = fmt::format("cannot write {}", path);
  slabs.emplace(path, key, writers);
  temporary = slabs->name_of_structures();
  agree(error_of([&] {
    if (!writers.first()) return;
    unlink(temporary.c_str());  // of a killed process
    create_exclusively(path, temporary);
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
  // Not H5Fget_filesize: the parallel driver no longer knows the size once the metadata cache has
  // spilled.
  std::int64_t bytes = 0;
  for (Output& output : outputs) {
    output.info.offset = static_cast<std::int64_t>(H5Dget_offset(output.data.get()));
    bytes =
        std::max(bytes, output.info.offset + output.info.num_slabs() * output.info.slab_bytes());
  }
  agree(error_of([&] {
    if (writers.first()) slabs->reserve(static_cast<std::uint64_t>(bytes));
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

void ModelFileWriter::Impl::note(const Output& output, std::int64_t slab, std::uint64_t checksum) {
  const std::size_t place = output.first_slab + static_cast<std::size_t>(slab);
  checksums[place] = checksum;
  ++times_written[place];
}

/// What lies between the tensors: HDF5's structures, and attachments. On the first rank.
void ModelFileWriter::Impl::copy_structures() const {
  const int from = ::open(temporary.c_str(), O_RDONLY | O_CLOEXEC);
  require(from >= 0, "{}: {}", what, std::strerror(errno));
  const off_t size = lseek(from, 0, SEEK_END);
  std::vector<std::byte> bytes;
  off_t at = 0;
  const auto copy_to = [&](off_t end) {
    bytes.resize(static_cast<std::size_t>(std::max<off_t>(0, end - at)));
    const ssize_t got = pread(from, bytes.data(), bytes.size(), at);
    const bool all = got == static_cast<ssize_t>(bytes.size());
    if (!all) ::close(from);
    require(all, "{}: its structures cannot be read again", what);
    slabs->write(at, bytes);
  };
  for (const Output& output : outputs) {  // in order of their offsets
    copy_to(output.info.offset);
    at = output.info.offset + output.info.num_slabs() * output.info.slab_bytes();
  }
  copy_to(size);
  ::close(from);
  require(truncate(slabs->name().c_str(), size) == 0, "{}: {}", what, std::strerror(errno));
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
                                 const std::vector<Attachment>& attachments, const std::string& key)
    : impl_(std::make_unique<Impl>(path, mpi_comm_f)) {
  prepare_hdf5();
  impl_->create(config_json, dtype, datasets, attachments, key);
}

ModelFileWriter::~ModelFileWriter() = default;

ModelFileWriter::Impl::Output& ModelFileWriter::Impl::output_of(std::size_t dataset,
                                                                std::int64_t slab) {
  require(dataset < outputs.size(), "{}: there is no dataset {}", what, dataset);
  Output& output = outputs[dataset];
  require(slab >= 0 && slab < output.info.num_slabs(), "{}: dataset {} has slabs 0 to {}, not {}",
          what, output.info.path, output.info.num_slabs() - 1, slab);
  return output;
}

bool ModelFileWriter::written_before(std::size_t dataset, std::int64_t slab,
                                     std::vector<std::byte>& buffer) {
  Impl::Output& output = impl_->output_of(dataset, slab);
  const auto number = output.first_slab + static_cast<std::size_t>(slab);
  const std::uint64_t* expected = impl_->slabs->written_before(number);
  if (expected == nullptr) return false;
  const std::int64_t bytes = output.info.slab_bytes();
  buffer.resize(static_cast<std::size_t>(bytes));
  impl_->slabs->read(output.info.offset + slab * bytes, buffer);
  if (checksum_of(buffer) != *expected) return false;
  impl_->note(output, slab, *expected);
  return true;
}

std::int64_t ModelFileWriter::slabs_written_before() const {
  return static_cast<std::int64_t>(impl_->slabs->num_written_before());
}

void ModelFileWriter::write_slab(std::size_t dataset, std::int64_t slab,
                                 std::span<const std::byte> bytes) {
  Impl::Output& output = impl_->output_of(dataset, slab);
  require(bytes.size() == static_cast<std::size_t>(output.info.slab_bytes()),
          "{}: dataset {}: a slab has {} bytes, not {}", impl_->what, output.info.path,
          output.info.slab_bytes(), bytes.size());
  const std::uint64_t checksum = checksum_of(bytes);
  impl_->slabs->write(output.info.offset + slab * output.info.slab_bytes(), bytes);
  impl_->slabs->note(output.first_slab + static_cast<std::size_t>(slab), checksum);
  impl_->note(output, slab, checksum);
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
  // What other ranks wrote is on disk before the file gets its name.
  impl.agree(error_of([&] { impl.slabs->sync(); }));
  impl.agree(error_of([&] {
    if (!impl.writers.first()) return;
    impl.copy_structures();
    // Before the file gets its name: from then on these names may be another import's.
    sync_to_disk(impl.slabs->name(), O_WRONLY);
    impl.slabs->remove(/*all=*/false);
    unlink(impl.temporary.c_str());
    publish(impl.slabs->name(), impl.path);
  }));
  impl.temporary.clear();
  impl.slabs.reset();  // with its lock
}

}  // namespace atl::io
