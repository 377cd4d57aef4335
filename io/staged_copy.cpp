#include "io/staged_copy.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <vector>

#include "compute/clock.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "io/running_checksum.hpp"

namespace atl::io {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t piece_bytes = std::size_t{4} << 20;

/// A descriptor that is closed.
class File {
 public:
  File(const std::string& path, int flags) : path_(path), file_(open(path.c_str(), flags, 0600)) {
    require(file_ >= 0, "cannot open {} ({}); check --stage", path, std::strerror(errno));
  }
  ~File() { close(file_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int raw() const { return file_; }
  struct stat status() const {
    struct stat found {};
    require(fstat(file_, &found) == 0, "cannot look at {} ({})", path_, std::strerror(errno));
    return found;
  }
  /// As much as there is from `at` on, at most `bytes.size()`.
  std::size_t read_at(std::vector<std::byte>& bytes, std::int64_t at) const {
    std::size_t got = 0;
    while (got < bytes.size()) {
      const ssize_t more =
          pread(file_, bytes.data() + got, bytes.size() - got, at + static_cast<std::int64_t>(got));
      require(more >= 0, "cannot read {} ({})", path_, std::strerror(errno));
      if (more == 0) break;
      got += static_cast<std::size_t>(more);
    }
    return got;
  }
  void write(const std::byte* bytes, std::size_t size) const {
    while (size > 0) {
      const ssize_t done = ::write(file_, bytes, size);
      require(done > 0, "cannot write {} ({}); give --stage a folder with more room", path_,
              std::strerror(errno));
      bytes += done;
      size -= static_cast<std::size_t>(done);
    }
  }

 private:
  std::string path_;
  int file_;
};

std::string time_of(const struct stat& status) {
  return fmt::format("{}.{:09}", status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

/// What a copy was made of, and the copy as it was then: one line.
std::string note_of(const std::string& file, const struct stat& source, const struct stat& copy) {
  return fmt::format("{} {} {} {} {}\n", source.st_size, time_of(source), copy.st_size,
                     time_of(copy), file);
}

std::string text_of(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

bool ends_are_equal(const File& a, const File& b, std::int64_t size) {
  std::vector<std::byte> of_a(piece_bytes);
  std::vector<std::byte> of_b(piece_bytes);
  const auto last = std::max<std::int64_t>(0, size - static_cast<std::int64_t>(piece_bytes));
  for (const std::int64_t at : {std::int64_t{0}, last}) {
    const std::size_t got = a.read_at(of_a, at);
    if (b.read_at(of_b, at) != got || std::memcmp(of_a.data(), of_b.data(), got) != 0) return false;
  }
  return true;
}

bool is_copy(const std::string& copy, const std::string& note, const std::string& file,
             const File& source) {
  std::error_code ignored;
  if (!fs::exists(copy, ignored)) return false;
  const File there(copy, O_RDONLY | O_CLOEXEC);
  return text_of(note) == note_of(file, source.status(), there.status()) &&
         ends_are_equal(source, there, source.status().st_size);
}

std::uint64_t checksum_of_file(const File& file) {
  RunningChecksum sum;
  std::vector<std::byte> piece(piece_bytes);
  for (std::int64_t at = 0;;) {
    const std::size_t got = file.read_at(piece, at);
    if (got == 0) return sum.value();
    sum.add(std::span(piece.data(), got));
    at += static_cast<std::int64_t>(got);
  }
}

void copy_checked(const File& source, const std::string& partial) {
  const File to(partial, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC);
  RunningChecksum sum;
  std::vector<std::byte> piece(piece_bytes);
  for (std::int64_t at = 0;;) {
    const std::size_t got = source.read_at(piece, at);
    if (got == 0) break;
    sum.add(std::span(piece.data(), got));
    to.write(piece.data(), got);
    at += static_cast<std::int64_t>(got);
  }
  require(fsync(to.raw()) == 0, "cannot write {} to disk ({})", partial, std::strerror(errno));
  posix_fadvise(to.raw(), 0, 0, POSIX_FADV_DONTNEED);  // from the disk, not from memory
  require(checksum_of_file(to) == sum.value(),
          "{} does not hold what was written to it; this node's disk or memory is at fault",
          partial);
}

/// What somebody else put there is not this function's to remove, the file itself least of all.
void require_no_other(const std::string& file, const std::string& copy, const std::string& note) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(copy, ignored))) return;
  require(!fs::equivalent(file, copy, ignored),
          "{} is the model itself; leave --stage out, or give it a folder on another disk", copy);
  require(fs::is_regular_file(fs::symlink_status(copy, ignored)) && fs::exists(note, ignored),
          "{} is there already, and no copy that --stage made; give --stage another folder", copy);
}

}  // namespace

std::string staged_path(const std::string& file, const std::string& folder) {
  std::error_code error;
  const fs::path place = fs::canonical(file, error);
  require(!error, "cannot open {} ({}); check --model", file, error.message());
  const std::string text = place.string();
  const std::uint64_t key = checksum_of(std::as_bytes(std::span(text)));
  return fmt::format("{}/{:016x}/{}", folder, key, place.filename().string());
}

StagedCopy stage_copy(const std::string& file, const std::string& folder) {
  const double begin = now_seconds();
  StagedCopy staged{staged_path(file, folder)};
  std::error_code error;
  require(!fs::equivalent(fs::path(file).parent_path() / ".", fs::path(folder) / ".", error),
          "{} is where the model is; leave --stage out, or give it a folder on another disk",
          folder);
  fs::create_directories(fs::path(staged.path).parent_path(), error);
  const std::string note = staged.path + ".staged";
  const File lock(staged.path + ".lock", O_RDWR | O_CREAT | O_CLOEXEC);
  flock(lock.raw(), LOCK_EX);  // where there are no locks, two at once copy the same
  const File source(file, O_RDONLY | O_CLOEXEC);
  const struct stat status = source.status();
  require(S_ISREG(status.st_mode), "{} is no file; check --model", file);
  staged.bytes = status.st_size;
  require_no_other(file, staged.path, note);
  const std::string whole = fs::canonical(file);
  staged.reused = is_copy(staged.path, note, whole, source);
  if (!staged.reused) {
    unlink(staged.path.c_str());
    unlink(note.c_str());
    struct statvfs room {};
    if (statvfs(folder.c_str(), &room) == 0) {
      const double free = static_cast<double>(room.f_bavail) * static_cast<double>(room.f_frsize);
      require(free >= static_cast<double>(staged.bytes),
              "{} has {:.1f} GB free, and {} has {:.1f}; give --stage a folder with more room",
              folder, free / 1e9, file, static_cast<double>(staged.bytes) / 1e9);
    }
    const std::string partial = fmt::format("{}.partial.{}", staged.path, getpid());
    try {
      copy_checked(source, partial);
      require(time_of(source.status()) == time_of(status), "{} changed while it was copied", file);
      {  // first, so that what is there always has one
        const File there(partial, O_RDONLY | O_CLOEXEC);
        std::ofstream stream(note, std::ios::binary);
        stream << note_of(whole, status, there.status());
      }
      fs::rename(partial, staged.path);
    } catch (...) {
      unlink(partial.c_str());
      throw;
    }
  }
  staged.seconds = now_seconds() - begin;
  return staged;
}

}  // namespace atl::io
