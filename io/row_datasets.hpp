#pragma once
// HDF5 datasets whose first dimension is rows, one for each position of each request, and the index
// that says which rows are whose. For io's own sources.

#include <cstdint>
#include <string>
#include <vector>

#include "io/hdf5_handle.hpp"

namespace atl::io {

inline constexpr const char* num_rows_path = "/requests/num_rows";

Handle copy_of(hid_t type, const std::string& what);
void make_group(hid_t file, const char* path, const std::string& what);

/// Contiguous storage that is there from the start, so that every rank may write its rows; what
/// nobody writes reads as zero.
Handle make_rows(hid_t file, const std::string& path, const Handle& type,
                 const std::vector<hsize_t>& extents, const std::string& what);

/// How a dataset that is read must be stored.
enum class Stored : std::uint8_t { anyhow, contiguously };
/// A dataset of these extents (-1: any; then set) that lies whole inside the file. Throws Error.
Handle open_rows(hid_t file, const std::string& path, Stored stored,
                 std::vector<std::int64_t>& extents, const std::string& what);

/// Entries [first, first + count) of the first dimension, all of each.
void write_rows(hid_t dataset, hid_t type, std::int64_t first, std::int64_t count, const void* data,
                const std::string& what);
void read_rows(hid_t dataset, hid_t type, std::int64_t first, std::int64_t count, void* data,
               const std::string& what);

/// Request r owns rows [first_row[r], first_row[r + 1]), of which num_rows[r] are filled.
struct RequestIndex {
  std::vector<std::string> ids;
  std::vector<std::int64_t> first_row;  ///< [requests + 1]
  std::vector<std::int64_t> num_rows;   ///< [requests]
};
/// Makes /requests with `id` and `first_row`, which only the caller with `fill` writes.
void make_request_index(hid_t file, const std::vector<std::string>& ids,
                        const std::vector<std::int64_t>& first_row, bool fill,
                        const std::string& what);
/// Reads them, and `num_rows`. Throws Error where they do not add up.
RequestIndex read_request_index(hid_t file, const std::string& what);

}  // namespace atl::io
