#include "io/folder_probe.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "compute/clock.hpp"
#include "compute/error.hpp"

namespace atl::io {

namespace {

constexpr std::size_t piece_words = std::size_t{1} << 16;

std::string path_in(const std::string& folder, std::uint64_t token) {
  return fmt::format("{}/.atoll-check-{:016x}", folder, token);
}

std::uint64_t word_at(std::uint64_t token, std::size_t index) {
  return (token ^ index) * 0x9e3779b97f4a7c15ULL;
}

/// The words from `first` on, as many as fill a piece or are left of `bytes`.
void fill(std::vector<std::uint64_t>& words, std::uint64_t token, std::size_t first,
          std::size_t bytes) {
  words.resize(std::min(piece_words, bytes / sizeof(std::uint64_t) - first));
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = word_at(token, first + i);
}

/// For locks of an open file, not of a process, which would lose it when it closes the file that it
/// looked at.
struct flock whole_file(short kind) {
  struct flock lock {};
  lock.l_type = kind;
  lock.l_whence = SEEK_SET;
  return lock;
}

}  // namespace

std::string hdf5_version() {
  unsigned major = 0;
  unsigned minor = 0;
  unsigned release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

FolderProbe::FolderProbe(const std::string& folder, std::uint64_t token, std::size_t bytes)
    : path_(path_in(folder, token)) {
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  require(file_ >= 0, "cannot write to {} ({})", folder, std::strerror(errno));
  const double begin = now_seconds();
  std::vector<std::uint64_t> words;
  bool whole = true;
  for (std::size_t at = 0; at < bytes / sizeof(std::uint64_t); at += words.size()) {
    fill(words, token, at, bytes);
    const std::size_t size = words.size() * sizeof(std::uint64_t);
    whole = whole && write(file_, words.data(), size) == static_cast<ssize_t>(size);
  }
  if (!whole || fsync(file_) != 0) {
    const int error = errno;
    close(file_);
    unlink(path_.c_str());
    fail("cannot write {} bytes to {} ({})", bytes, folder, std::strerror(error));
  }
  written_bytes_per_s_ = static_cast<double>(bytes) / (now_seconds() - begin);
  struct flock lock = whole_file(F_WRLCK);
  locked_ = fcntl(file_, F_OFD_SETLK, &lock) == 0;
}

FolderProbe::~FolderProbe() {
  close(file_);
  unlink(path_.c_str());
}

FolderView look_at_probe(const std::string& folder, std::uint64_t token, std::size_t bytes) {
  FolderView view;
  const int file = open(path_in(folder, token).c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) {
    const int error = errno;
    view.problem =
        access(folder.c_str(), F_OK) != 0
            ? fmt::format("there is no {}", folder)
            : fmt::format("{} is another folder than rank 0's ({})", folder, std::strerror(error));
    return view;
  }
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);  // from the file system, not from memory
  std::vector<std::uint64_t> expected;
  std::vector<std::uint64_t> found(piece_words);
  double seconds = 0;
  for (std::size_t at = 0; at < bytes / sizeof(std::uint64_t); at += expected.size()) {
    fill(expected, token, at, bytes);
    const std::size_t size = expected.size() * sizeof(std::uint64_t);
    const double begin = now_seconds();
    const ssize_t got = read(file, found.data(), size);
    seconds += now_seconds() - begin;
    if (got != static_cast<ssize_t>(size) ||
        std::memcmp(found.data(), expected.data(), size) != 0) {
      view.problem = fmt::format("{} does not show all that rank 0 wrote there", folder);
      break;
    }
  }
  view.read_bytes_per_s = static_cast<double>(bytes) / std::max(seconds, 1e-9);
  struct flock lock = whole_file(F_WRLCK);
  view.sees_lock = fcntl(file, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  close(file);
  return view;
}

}  // namespace atl::io
