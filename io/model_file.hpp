#pragma once
// The model file: HDF5, one dataset per tensor, BF16 as a 16-bit custom float, a checksum per slab.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "compute/types.hpp"

namespace atl::io {

/// The attribute "format" of an HDF5 file, which tells Atoll's files apart. Throws Error: missing,
/// not HDF5, truncated, no such attribute.
std::string file_format(const std::string& path);

/// xxh3-64, the checksum of this format.
std::uint64_t checksum_of(std::span<const std::byte> bytes);

/// In place of a communicator: one process writes alone, and MPI need not be initialised.
inline constexpr int single_process = -1;

/// A dataset of the file, contiguous in it. A slab is one entry of the first dimension where
/// `per_expert`, else all.
struct DatasetInfo {
  std::string path;
  std::vector<std::int64_t> shape;
  DType dtype = DType::bfloat16;
  std::vector<std::uint64_t> checksums;  ///< xxh3-64 of each slab's bytes: [experts] or [1]
  bool per_expert = false;
  std::int64_t offset = 0;  ///< of its first byte in the file

  std::int64_t num_slabs() const { return per_expert ? shape[0] : 1; }
  std::int64_t slab_elements() const;
  std::int64_t slab_bytes() const {
    return slab_elements() * static_cast<std::int64_t>(size_of(dtype));
  }
};

/// What a model file holds beside tensors: bytes or numbers of no type of ours, such as a
/// tokenizer. A dataset each, in the group /tokenizer.
struct Attachment {
  std::string path;
  int element_bytes = 1;  ///< 1: uint8, 4: uint32, little endian
  std::string bytes;      ///< not empty

  bool operator==(const Attachment&) const = default;
};

/// Reads a model file; any number of processes may read it at once. Not collective.
class ModelFileReader {
 public:
  /// Opens and checks format and version. Throws Error: missing, not HDF5, not a model file,
  /// truncated, another version.
  explicit ModelFileReader(const std::string& path);
  /// The same file as another process has described() it: of thousands of ranks one looks through
  /// HDF5's structures. Reads a few bytes. Throws Error where the path leads to another file.
  ModelFileReader(const std::string& path, const std::string& description);
  ~ModelFileReader();
  ModelFileReader(const ModelFileReader&) = delete;
  ModelFileReader& operator=(const ModelFileReader&) = delete;

  const std::string& path() const;
  const std::string& config_json() const;
  std::vector<DatasetInfo> datasets() const;  ///< in file order of creation
  /// Throws Error when there is no such dataset.
  DatasetInfo dataset(const std::string& path) const;

  /// In order of their paths; they are read and their checksums verified here. Throws Error.
  std::vector<Attachment> attachments() const;

  /// Reads slab `slab` into `destination` (exactly slab_bytes()) and verifies its checksum.
  void read_slab(const DatasetInfo& dataset, std::int64_t slab, std::span<std::byte> destination);
  /// Reads a part of a slab, from byte `first` of it on, which verify() has not seen.
  void read_part(const DatasetInfo& dataset, std::int64_t slab, std::int64_t first,
                 std::span<std::byte> destination);
  /// Throws Error unless `bytes` have the checksum of slab `slab`.
  void verify(const DatasetInfo& dataset, std::int64_t slab,
              std::span<const std::byte> bytes) const;

  /// All that this object knows of the file, for the same file's reader in another process.
  std::string description() const;

  std::int64_t bytes_read() const;  ///< of tensors
  /// xxh3-64 over configuration, dataset names, shapes and checksums, also of attachments: equal
  /// files, equal identity.
  std::uint64_t identity() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Writes a model file with parallel HDF5: every rank of `mpi_comm` constructs it with the same
/// arguments, writes some of the slabs, and calls close(). The bytes of the file do not depend on
/// the number of ranks. Written under a temporary name (PATH.partial.XXXXXXXX) and renamed by
/// close(); an unclosed file is removed. With a key, what a killed process has written stays in
/// PATH.partial, for a writer of the same key to go on with. HDF5 is used from one thread at a
/// time.
class ModelFileWriter {
 public:
  struct Dataset {
    std::string path;
    std::vector<std::int64_t> shape;
    bool per_expert = false;
    std::optional<DType> dtype{};  ///< empty: the file's
  };

  /// `mpi_comm_f` is a communicator's Fortran handle (MPI_Comm_c2f), so that no caller needs mpi.h,
  /// or single_process. Collective. Throws Error on all ranks alike: `path` cannot be written, the
  /// disk has not enough room. `attachments` are written here. `key`, one line, says what is
  /// written where: equal keys, equal slabs.
  ModelFileWriter(const std::string& path, const std::string& config_json, DType dtype,
                  const std::vector<Dataset>& datasets, int mpi_comm_f,
                  const std::vector<Attachment>& attachments = {}, const std::string& key = {});
  ~ModelFileWriter();
  ModelFileWriter(const ModelFileWriter&) = delete;
  ModelFileWriter& operator=(const ModelFileWriter&) = delete;

  /// Writes one slab (independent of the other ranks) and remembers its checksum. After an Error
  /// here, pass its text to set_failed() and call close(), so that all ranks end together.
  void write_slab(std::size_t dataset, std::int64_t slab, std::span<const std::byte> bytes);
  /// Whether an earlier writer has left the slab, whole: then it need not be written. `buffer` gets
  /// its bytes.
  bool written_before(std::size_t dataset, std::int64_t slab, std::vector<std::byte>& buffer);
  /// How many there were, of which some may be damaged.
  std::int64_t slabs_written_before() const;
  /// Remembers that this rank cannot go on: close() will remove the file and throw on every rank.
  void set_failed(const std::string& reason);
  /// Collective: exchanges checksums, requires that every slab was written once, flushes, renames.
  /// Throws Error on all ranks alike.
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::io
