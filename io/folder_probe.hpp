#pragma once
// Whether a folder is the same for all who look at it: one process writes a file there, others find
// it, read it and see its lock.

#include <cstdint>
#include <string>

namespace atl::io {

/// Version of the HDF5 that is loaded, "1.10.8".
std::string hdf5_version();

/// The file that the writer made and holds a lock on; removed with this.
class FolderProbe {
 public:
  /// Writes `bytes`, a multiple of 8 that follows from `token`, to disk. Throws Error where that
  /// fails, naming the folder.
  FolderProbe(const std::string& folder, std::uint64_t token, std::size_t bytes);
  ~FolderProbe();
  FolderProbe(const FolderProbe&) = delete;
  FolderProbe& operator=(const FolderProbe&) = delete;
  double written_bytes_per_s() const { return written_bytes_per_s_; }
  bool locked() const { return locked_; }  ///< the file system gave a lock

 private:
  std::string path_;
  int file_ = -1;
  double written_bytes_per_s_ = 0;
  bool locked_ = false;
};

/// What another process sees.
struct FolderView {
  std::string problem;  ///< "" where the file is there, with the writer's bytes
  double read_bytes_per_s = 0;
  bool sees_lock = false;  ///< that the writer holds
};
FolderView look_at_probe(const std::string& folder, std::uint64_t token, std::size_t bytes);

}  // namespace atl::io
