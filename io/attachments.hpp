#pragma once
// Attachments of a model file as HDF5 datasets; for its reader and its writer.

#include <hdf5.h>

#include <cstdint>
#include <string>

#include "io/model_file.hpp"

namespace atl::io {

/// An attachment on file.
struct StoredAttachment {
  std::string path;
  int element_bytes = 1;
  std::int64_t elements = 0;
  std::int64_t offset = 0;     ///< in the file, in bytes
  std::uint64_t checksum = 0;  ///< xxh3-64 of its bytes

  std::int64_t num_bytes() const { return elements * element_bytes; }
};

/// Whether a dataset by that path is one.
bool is_attachment(const std::string& path);

/// Makes the dataset, whose group exists, with its checksum; every process that has the file open
/// calls it, and one writes the bytes. `what` begins the messages.
void make_attachment(hid_t file, const Attachment& attachment, bool writes,
                     const std::string& what);
/// Throws Error where it is no dataset of bytes or 32-bit numbers, not stored contiguously, or
/// not all in the `file_bytes`.
StoredAttachment describe_attachment(hid_t dataset, const std::string& path,
                                     std::int64_t file_bytes, const std::string& what);
/// Throws Error where `bytes` are not those of its checksum.
void verify_attachment(const StoredAttachment& stored, const std::string& bytes,
                       const std::string& what);

}  // namespace atl::io
