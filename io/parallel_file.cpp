#include "io/parallel_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>

#include "compute/error.hpp"

namespace atl::io {

Writers::Writers(int mpi_comm_f) {
  if (mpi_comm_f == single_process) return;
  comm_ = MPI_Comm_f2c(mpi_comm_f);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

std::string Writers::broadcast(std::string text, int root) const {
  if (alone()) return text;
  int size = static_cast<int>(text.size());
  MPI_Bcast(&size, 1, MPI_INT, root, comm_);
  text.resize(static_cast<std::size_t>(size));
  MPI_Bcast(text.data(), size, MPI_CHAR, root, comm_);
  return text;
}

std::string Writers::first_error(const std::string& text) const {
  if (alone()) return text;
  const int mine = text.empty() ? size_ : rank_;
  int lowest = size_;
  MPI_Allreduce(&mine, &lowest, 1, MPI_INT, MPI_MIN, comm_);
  if (lowest == size_) return {};
  return fmt::format("rank {}: {}", lowest, broadcast(text, lowest));
}

void Writers::add_up(std::vector<std::uint64_t>& values) const {
  if (alone()) return;
  MPI_Allreduce(MPI_IN_PLACE, values.data(), static_cast<int>(values.size()), MPI_UINT64_T, MPI_SUM,
                comm_);
}

void throw_agreed(const Writers& writers, const std::string& error, std::string& temporary,
                  const std::function<void()>& close) {
  const std::string first = writers.first_error(error);
  if (first.empty()) return;
  close();
  if (writers.first()) unlink(temporary.c_str());
  temporary.clear();
  throw Error(first);
}

std::string random_suffix() {
  return fmt::format(".partial.{:08x}", std::random_device{}());
}

bool create_if_absent(const std::string& path, const std::string& temporary) {
  struct stat status {};
  if (stat(path.c_str(), &status) == 0) {
    require(S_ISREG(status.st_mode),
            "cannot write {}: it exists and is not a regular file; give another path", path);
  }
  const int file = open(temporary.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
  if (file < 0) {
    const int reason = errno;
    if (reason == EEXIST) return false;
    std::error_code ignored;
    fail("cannot write {}: {} (working directory {}); check that its folder exists and is writable",
         path, std::strerror(reason), std::filesystem::current_path(ignored).string());
  }
  ::close(file);
  return true;
}

void create_exclusively(const std::string& path, const std::string& temporary) {
  require(create_if_absent(path, temporary), "cannot write {}: {} is there already", path,
          temporary);
}

void reserve_room(const std::string& path, const std::string& temporary, hsize_t bytes) {
  const int file = open(temporary.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) fail("cannot write {}: {}", path, std::strerror(errno));
  const int result = fallocate(file, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes));
  const int reason = result == 0 ? 0 : errno;
  ::close(file);
  require(reason != ENOSPC && reason != EFBIG && reason != EDQUOT,
          "cannot write {}: {} ({} bytes are needed); free some space or give another path", path,
          std::strerror(reason), bytes);
}

void sync_to_disk(const std::string& path, int flags) {
  const int file = open(path.c_str(), flags | O_CLOEXEC);
  if (file < 0) fail("cannot write {}: {}", path, std::strerror(errno));
  const int result = fsync(file);
  const int reason = errno;
  ::close(file);
  // Some file systems refuse fsync on folders; the file itself is what matters.
  require(result == 0 || reason == EINVAL, "cannot write {}: {}", path, std::strerror(reason));
}

Handle make_file(const std::string& temporary, const Writers& writers, const std::string& what) {
  const Handle access = checked(H5Pcreate(H5P_FILE_ACCESS), what);
  // Version 1.10's format has a checksum on every piece of metadata.
  check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), what);
  // Without blocks of small data, offsets rise in the order of creation.
  check(H5Pset_small_data_block_size(access.get(), 0), what);
  if (writers.alone()) {
    check(H5Pset_file_locking(access.get(), false, true), what);
    check(H5Pset_sieve_buf_size(access.get(), 0), what);
  } else {
    check(H5Pset_fapl_mpio(access.get(), writers.comm(), MPI_INFO_NULL), what);
  }
  const Handle creation = checked(H5Pcreate(H5P_FILE_CREATE), what);
  check(H5Pset_obj_track_times(creation.get(), false), what);
  return checked(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), what);
}

void publish(const std::string& temporary, const std::string& path) {
  sync_to_disk(temporary, O_WRONLY);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    fail("cannot write {}: {}", path, std::strerror(errno));
  }
  const std::string folder = std::filesystem::path(path).parent_path().string();
  sync_to_disk(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
}

}  // namespace atl::io
