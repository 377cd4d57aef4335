#pragma once
// Writing one HDF5 file from many ranks: whom to agree with, where the bytes go until the file is
// whole, and how it gets its name. For io's own sources: it brings mpi.h.

#include <mpi.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "io/hdf5_handle.hpp"
#include "io/model_file.hpp"

namespace atl::io {

/// The ranks that write together; just this process without a communicator. Calls are collective.
class Writers {
 public:
  /// `mpi_comm_f` is a communicator's Fortran handle, or single_process.
  explicit Writers(int mpi_comm_f);

  MPI_Comm comm() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  bool first() const { return rank_ == 0; }
  bool alone() const { return size_ == 1; }

  /// The text that `root` passed.
  std::string broadcast(std::string text, int root = 0) const;
  /// The lowest rank's non-empty text, on every rank; empty when no rank has one.
  std::string first_error(const std::string& text) const;
  /// Adds up over the ranks, element by element and in place.
  void add_up(std::vector<std::uint64_t>& values) const;

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
};

/// Runs `work` and returns the text of the Error it threw, or nothing.
template <class Work>
std::string error_of(Work&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

/// Collective: when any rank has an error, all ranks call `close`, the temporary file is removed
/// and its name cleared, and all throw the lowest rank's error.
void throw_agreed(const Writers& writers, const std::string& error, std::string& temporary,
                  const std::function<void()>& close);

/// Name for a file until it is whole: ".partial." and 8 random digits, to be put behind its path.
std::string random_suffix();
/// Creates the temporary file, so that a wrong path gives the system's reason and not HDF5's. False
/// where something of that name is there.
bool create_if_absent(const std::string& path, const std::string& temporary);
/// The same; it must not be there.
void create_exclusively(const std::string& path, const std::string& temporary);
/// Asks the file system for all room at once: a full disk shows before hours of work. The length
/// is left alone. File systems that cannot reserve are taken at their word.
void reserve_room(const std::string& path, const std::string& temporary, hsize_t bytes);
/// Collective: the temporary file, opened by all writers.
Handle make_file(const std::string& temporary, const Writers& writers, const std::string& what);
/// Flushes a file (O_WRONLY) or folder (O_RDONLY | O_DIRECTORY) to disk.
void sync_to_disk(const std::string& path, int flags);
/// Flushes the temporary file to disk, gives it its name, and flushes that too.
void publish(const std::string& temporary, const std::string& path);

}  // namespace atl::io
