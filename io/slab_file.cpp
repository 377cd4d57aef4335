#include "io/slab_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "compute/error.hpp"

namespace atl::io {

namespace {

namespace fs = std::filesystem;

/// Files PATH.partial.done.*, of any number of ranks.
std::vector<fs::path> lists_of(const std::string& name) {
  std::vector<fs::path> found;
  const fs::path file(name);
  const std::string prefix = file.filename().string() + ".done.";
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().filename().string().starts_with(prefix)) found.push_back(entry.path());
  }
  return found;
}

}  // namespace

SlabFile::SlabFile(const std::string& path, const std::string& key, const Writers& writers)
    : path_(path), key_(key), rank_(writers.rank()) {
  name_ = writers.broadcast(path + (key.empty() ? random_suffix() : ".partial"));
  std::string lines;
  const auto agree = [&](const std::string& error) {
    const std::string first = writers.first_error(error);
    if (first.empty()) return;
    throw Error(first);
  };
  agree(error_of([&] {
    if (!writers.first()) return;
    open(/*create=*/true);
    lines = take_up();
  }));
  agree(error_of([&] {
    if (!writers.first()) open(/*create=*/false);
  }));
  parse(writers.broadcast(std::move(lines)));
  if (key_.empty()) return;
  agree(error_of([&] {
    const std::string list = fmt::format("{}.done.{}", name_, rank_);
    done_.reset(std::fopen(list.c_str(), "ae"));
    if (!done_) fail("cannot write {}: {}", list, std::strerror(errno));
    if (std::ftell(done_.get()) == 0) fmt::print(done_.get(), "{}\n", key_);
    std::fflush(done_.get());
  }));
}

SlabFile::~SlabFile() {
  if (file_ >= 0) ::close(file_);
}

void SlabFile::open(bool create) {
  constexpr int enough = 1000;  // a link that leads nowhere stays so
  for (int turn = 0; file_ < 0; ++turn) {
    require(turn < enough, "cannot write {}: {} comes and goes; remove it", path_, name_);
    const bool there = !key_.empty() && ::access(name_.c_str(), F_OK) == 0;
    if (create && !there && !create_if_absent(path_, name_)) {
      require(!key_.empty(), "cannot write {}: {} is there already", path_, name_);
      continue;  // another import has made it just now
    }
    file_ = ::open(name_.c_str(), O_RDWR | O_CLOEXEC);
    if (file_ < 0 && (!there || errno != ENOENT)) {
      fail("cannot write {}: {}", name_, std::strerror(errno));
    }
    if (file_ < 0) continue;  // it was given its name, or removed, just now
    if (!create) return;
    // Some file systems have no locks; there nobody is refused.
    const bool taken = flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    require(!taken, "cannot write {}: another process is writing {}; wait for it", path_, name_);
    if (has_name()) return;
    // Whoever had the lock has made it the model file meanwhile, which is not to be written to.
    ::close(file_);
    file_ = -1;
  }
}

/// Whether the file that is open is still the one of that name.
bool SlabFile::has_name() const {
  struct stat opened {};
  struct stat named {};
  return fstat(file_, &opened) == 0 && stat(name_.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

void SlabFile::reserve(std::uint64_t bytes) const {
  reserve_room(path_, name_, bytes);
}

/// On the first rank: what all ranks of an earlier run of this key have written, a line each. What
/// is of another key is removed.
std::string SlabFile::take_up() const {
  std::string lines;
  bool other = false;
  for (const fs::path& list : lists_of(name_)) {
    std::ifstream stream(list);
    std::string line;
    std::getline(stream, line);
    other = other || key_.empty() || line != key_;
    while (std::getline(stream, line)) {
      if (!stream.eof()) lines += line + "\n";  // else it was cut off
    }
  }
  if (!other) return lines;
  for (const fs::path& list : lists_of(name_)) fs::remove(list);
  return {};
}

void SlabFile::parse(const std::string& lines) {
  std::istringstream stream(lines);
  std::uint64_t slab = 0;
  std::uint64_t checksum = 0;
  while (stream >> std::dec >> slab >> std::hex >> checksum) before_[slab] = checksum;
}

const std::uint64_t* SlabFile::written_before(std::uint64_t slab) const {
  const auto found = before_.find(slab);
  return found == before_.end() ? nullptr : &found->second;
}

void SlabFile::read(std::int64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t got = pread(file_, bytes.data(), bytes.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("cannot read {}: {}", name_, std::strerror(errno));
    if (got == 0) {  // never written: as a hole
      std::memset(bytes.data(), 0, bytes.size());
      return;
    }
    offset += got;
    bytes = bytes.subspan(static_cast<std::size_t>(got));
  }
}

void SlabFile::write(std::int64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t put = pwrite(file_, bytes.data(), bytes.size(), offset);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("cannot write {}: {}", path_, std::strerror(errno));
    offset += put;
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
}

void SlabFile::note(std::uint64_t slab, std::uint64_t checksum) {
  if (!done_) return;
  fmt::print(done_.get(), "{} {:016x}\n", slab, checksum);
  if (std::fflush(done_.get()) != 0) fail("cannot write {}: {}", path_, std::strerror(errno));
}

void SlabFile::sync() const {
  const bool synced = fsync(file_) == 0;
  require(synced, "cannot write {}: {}", path_, std::strerror(errno));
}

void SlabFile::remove(bool all) {
  if (all) unlink(name_.c_str());
  if (key_.empty()) return;
  std::error_code ignored;
  for (const fs::path& list : lists_of(name_)) fs::remove(list, ignored);
}

}  // namespace atl::io
