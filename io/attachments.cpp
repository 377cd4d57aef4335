#include "io/attachments.hpp"

#include <fmt/format.h>

#include <span>

#include "compute/error.hpp"
#include "io/hdf5_handle.hpp"

namespace atl::io {
namespace {

hid_t type_of(int element_bytes) {
  return element_bytes == 1 ? H5T_STD_U8LE : H5T_STD_U32LE;
}

std::uint64_t checksum_of_text(const std::string& bytes) {
  return checksum_of(std::as_bytes(std::span(bytes)));
}

}  // namespace

bool is_attachment(const std::string& path) {
  return path.starts_with(attachment_group);
}

void make_attachment(hid_t file, const Attachment& attachment, bool writes,
                     const std::string& what) {
  const std::string problem = fmt::format("{}: dataset {}", what, attachment.path);
  const auto width = static_cast<std::size_t>(attachment.element_bytes);
  require((width == 1 || width == 4) && !attachment.bytes.empty() &&
              attachment.bytes.size() % width == 0,
          "{}: {} bytes are no elements of {}", problem, attachment.bytes.size(), width);
  const Handle creation = checked(H5Pcreate(H5P_DATASET_CREATE), problem);
  check(H5Pset_obj_track_times(creation.get(), false), problem);
  check(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), problem);
  check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), problem);
  check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), problem);
  const hsize_t elements = attachment.bytes.size() / width;
  const Handle space = checked(H5Screate_simple(1, &elements, nullptr), problem);
  const Handle data =
      checked(H5Dcreate2(file, attachment.path.c_str(), type_of(attachment.element_bytes),
                         space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT),
              problem);
  const std::uint64_t checksum = checksum_of_text(attachment.bytes);
  make_u64_attribute(data.get(), checksum_attribute, 1);
  set_u64_attribute(data.get(), checksum_attribute, &checksum);
  if (!writes) return;
  check(H5Dwrite(data.get(), type_of(attachment.element_bytes), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                 attachment.bytes.data()),
        problem + ": is the disk full?");
}

StoredAttachment describe_attachment(hid_t dataset, const std::string& path,
                                     std::int64_t file_bytes, const std::string& what) {
  StoredAttachment stored;
  stored.path = path;
  const Handle type = checked(H5Dget_type(dataset), what);
  stored.element_bytes = H5Tequal(type.get(), type_of(1)) > 0   ? 1
                         : H5Tequal(type.get(), type_of(4)) > 0 ? 4
                                                                : 0;
  require(stored.element_bytes != 0,
          "{}: elements are neither uint8 nor uint32; the file is damaged", what);
  const Handle space = checked(H5Dget_space(dataset), what);
  hsize_t elements = 0;
  require(H5Sget_simple_extent_ndims(space.get()) == 1, "{}: not one dimension", what);
  check(H5Sget_simple_extent_dims(space.get(), &elements, nullptr), what);
  require(elements > 0 && elements <= static_cast<hsize_t>(file_bytes),
          "{}: {} elements do not fit a file of {} bytes; the file is damaged", what, elements,
          file_bytes);
  stored.elements = static_cast<std::int64_t>(elements);
  const haddr_t offset = H5Dget_offset(dataset);  // none where it is in chunks
  require(offset != HADDR_UNDEF && stored.num_bytes() <= file_bytes &&
              offset <= static_cast<haddr_t>(file_bytes - stored.num_bytes()),
          "{}: its {} bytes do not lie contiguously in the file of {} bytes; the file is truncated "
          "or damaged",
          what, stored.num_bytes(), file_bytes);
  stored.offset = static_cast<std::int64_t>(offset);
  const auto checksums = read_u64_attribute(
      dataset, checksum_attribute, fmt::format("{}, attribute \"{}\"", what, checksum_attribute));
  require(checksums.size() == 1, "{}: {} checksums; the file is damaged", what, checksums.size());
  stored.checksum = checksums[0];
  return stored;
}

void verify_attachment(const StoredAttachment& stored, const std::string& bytes,
                       const std::string& what) {
  const std::uint64_t found = checksum_of_text(bytes);
  require(found == stored.checksum,
          "{}: checksum {:016x}, must be {:016x}; the file is damaged: copy or create it again",
          what, found, stored.checksum);
}

}  // namespace atl::io
