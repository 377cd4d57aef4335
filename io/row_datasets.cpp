#include "io/row_datasets.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "compute/error.hpp"

namespace atl::io {

namespace {

constexpr std::size_t longest_id = 4096;

/// Strings of one length, filled up with zeros.
Handle text_type(std::size_t length, const std::string& what) {
  Handle type = copy_of(H5T_C_S1, what);
  check(H5Tset_size(type.get(), std::max<std::size_t>(length, 1)), what);
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), what);
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), what);
  return type;
}

std::vector<hsize_t> extents_of(hid_t space, const std::string& what) {
  const int dims = H5Sget_simple_extent_ndims(space);
  require(dims > 0, "{}: a dataset without dimensions; the file is damaged", what);
  std::vector<hsize_t> extents(static_cast<std::size_t>(dims));
  check(H5Sget_simple_extent_dims(space, extents.data(), nullptr), what);
  return extents;
}

/// Entries [first, first + count) of the first dimension of a dataset.
struct Selection {
  Selection(hid_t dataset, std::int64_t first, std::int64_t count, const std::string& what) {
    file = checked(H5Dget_space(dataset), what);
    std::vector<hsize_t> extent = extents_of(file.get(), what);
    std::vector<hsize_t> start(extent.size(), 0);
    start[0] = static_cast<hsize_t>(first);
    extent[0] = static_cast<hsize_t>(count);
    check(H5Sselect_hyperslab(file.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                              nullptr),
          what);
    hsize_t elements = 1;
    for (const hsize_t each : extent) elements *= each;
    memory = checked(H5Screate_simple(1, &elements, nullptr), what);
  }
  Handle file, memory;
};

}  // namespace

Handle copy_of(hid_t type, const std::string& what) {
  return checked(H5Tcopy(type), what);
}

void make_group(hid_t file, const char* path, const std::string& what) {
  const Handle creation = checked(H5Pcreate(H5P_GROUP_CREATE), what);
  check(H5Pset_obj_track_times(creation.get(), false), what);
  check(H5Pset_link_phase_change(creation.get(), 65535, 65535), what);
  checked(H5Gcreate2(file, path, H5P_DEFAULT, creation.get(), H5P_DEFAULT), what);
}

Handle make_rows(hid_t file, const std::string& path, const Handle& type,
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

Handle open_rows(hid_t file, const std::string& path, Stored stored,
                 std::vector<std::int64_t>& extents, const std::string& what) {
  const std::string problem = fmt::format("{}: dataset {}", what, path);
  Handle data = checked(H5Dopen2(file, path.c_str(), H5P_DEFAULT), problem);
  const Handle space = checked(H5Dget_space(data.get()), problem);
  const std::vector<hsize_t> found = extents_of(space.get(), problem);
  require(found.size() == extents.size(), "{}: another number of dimensions than {}", problem,
          extents.size());
  for (std::size_t dim = 0; dim < extents.size(); ++dim) {
    const auto extent = static_cast<std::int64_t>(found[dim]);
    require(extent > 0 && extent < std::int64_t{1} << 40 &&
                (extents[dim] < 0 || extents[dim] == extent),
            "{}: a dimension of {}; the file is damaged", problem, extent);
    extents[dim] = extent;
  }
  const Handle creation = checked(H5Dget_create_plist(data.get()), problem);
  const H5D_layout_t layout = H5Pget_layout(creation.get());
  require(layout != H5D_VIRTUAL && H5Pget_external_count(creation.get()) == 0,
          "{}: not stored in this file", problem);
  require(stored == Stored::anyhow ||
              (layout == H5D_CONTIGUOUS && H5Dget_offset(data.get()) != HADDR_UNDEF),
          "{}: not stored contiguously in this file", problem);
  return data;
}

void write_rows(hid_t dataset, hid_t type, std::int64_t first, std::int64_t count, const void* data,
                const std::string& what) {
  const Selection rows(dataset, first, count, what);
  check(H5Dwrite(dataset, type, rows.memory.get(), rows.file.get(), H5P_DEFAULT, data),
        what + ": is the disk full?");
}

void read_rows(hid_t dataset, hid_t type, std::int64_t first, std::int64_t count, void* data,
               const std::string& what) {
  if (count == 0) return;
  const Selection rows(dataset, first, count, what);
  check(H5Dread(dataset, type, rows.memory.get(), rows.file.get(), H5P_DEFAULT, data), what);
}

void make_request_index(hid_t file, const std::vector<std::string>& ids,
                        const std::vector<std::int64_t>& first_row, bool fill,
                        const std::string& what) {
  make_group(file, "/requests", what);
  std::size_t longest = 1;
  for (const std::string& id : ids) longest = std::max(longest, std::min(id.size(), longest_id));
  const Handle id_type = text_type(longest, what);
  const hsize_t num_requests = ids.size();
  const Handle names = make_rows(file, "/requests/id", id_type, {num_requests}, what);
  const Handle first = make_rows(file, "/requests/first_row", copy_of(H5T_STD_I64LE, what),
                                 {num_requests + 1}, what);
  if (!fill) return;
  std::string packed(longest * ids.size(), '\0');
  for (std::size_t r = 0; r < ids.size(); ++r) ids[r].copy(packed.data() + r * longest, longest);
  const auto count = static_cast<std::int64_t>(num_requests);
  write_rows(names.get(), id_type.get(), 0, count, packed.data(), what);
  write_rows(first.get(), H5T_NATIVE_INT64, 0, count + 1, first_row.data(), what);
}

RequestIndex read_request_index(hid_t file, const std::string& what) {
  std::vector<std::int64_t> extents{-1};
  const Handle names = open_rows(file, "/requests/id", Stored::anyhow, extents, what);
  const std::int64_t count = extents[0];
  extents[0] = count + 1;
  const Handle first = open_rows(file, "/requests/first_row", Stored::anyhow, extents, what);
  extents[0] = count;
  const Handle filled = open_rows(file, num_rows_path, Stored::anyhow, extents, what);
  const auto num_requests = static_cast<std::size_t>(count);
  RequestIndex index;
  index.first_row.resize(num_requests + 1);
  index.num_rows.resize(num_requests);
  read_rows(first.get(), H5T_NATIVE_INT64, 0, count + 1, index.first_row.data(), what);
  read_rows(filled.get(), H5T_NATIVE_INT64, 0, count, index.num_rows.data(), what);
  const Handle type = checked(H5Dget_type(names.get()), what);
  const std::size_t length = H5Tget_size(type.get());
  require(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0 &&
              length > 0 && length <= longest_id,
          "{}: the requests' ids are not strings of one length; the file is damaged", what);
  std::string packed(num_requests * length, '\0');
  read_rows(names.get(), text_type(length, what).get(), 0, count, packed.data(), what);
  bool sound = index.first_row.front() == 0;
  for (std::size_t r = 0; r < num_requests; ++r) {
    // Zeros fill what is shorter; one within an id belongs to it.
    const std::string_view id = std::string_view(packed).substr(r * length, length);
    index.ids.emplace_back(id.substr(0, id.find_last_not_of('\0') + 1));
    sound = sound && index.first_row[r] <= index.first_row[r + 1] && index.num_rows[r] >= 0 &&
            index.num_rows[r] <= index.first_row[r + 1] - index.first_row[r];
  }
  require(sound, "{}: its requests' rows do not add up; the file is damaged", what);
  return index;
}

}  // namespace atl::io
