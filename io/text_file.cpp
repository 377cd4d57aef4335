#include "io/text_file.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <initializer_list>

#include "compute/error.hpp"

namespace atl::io {

namespace {

[[noreturn]] void refuse(const std::string& path, int error) {
  fail("cannot write {} ({}); check the path and its permissions", path, std::strerror(error));
}

/// The standard output or error that writes to the same file; -1 when neither does.
int standard_descriptor_of(const struct stat& status) {
  for (const int descriptor : {STDOUT_FILENO, STDERR_FILENO}) {
    struct stat standard {};
    if (fstat(descriptor, &standard) == 0 && standard.st_dev == status.st_dev &&
        standard.st_ino == status.st_ino) {
      return descriptor;
    }
  }
  return -1;
}

/// Opens what is written until the file is whole. Throws Error when `path` may not be replaced.
std::FILE* open_place(const std::string& path, const TextPlace& place) {
  struct stat status {};
  if (stat(path.c_str(), &status) == 0) {
    if (S_ISDIR(status.st_mode)) refuse(path, EISDIR);
    if (S_ISREG(status.st_mode) && access(path.c_str(), W_OK) != 0) refuse(path, errno);
  }
  std::FILE* file = nullptr;
  if (place.descriptor >= 0) {  // of the same position, so that neither writes over the other
    const int copy = dup(place.descriptor);
    file = copy < 0 ? nullptr : fdopen(copy, "w");
  } else {
    file = std::fopen(place.direct ? path.c_str() : place.partial().c_str(), "w");
  }
  if (file == nullptr) refuse(path, errno);
  return file;
}

}  // namespace

TextPlace text_place_of(const std::string& path) {
  namespace fs = std::filesystem;
  constexpr int max_links = 40;
  const auto is_of_system = [](const std::string& name) {
    return name.starts_with("/proc/") ||
           (name.starts_with("/dev/") && !name.starts_with("/dev/shm/"));
  };
  TextPlace place;
  fs::path at = path;
  std::error_code error;
  for (int i = 0; i < max_links && fs::is_symlink(at, error); ++i) {
    place.direct = place.direct || is_of_system(at.string());
    at = at.parent_path() / fs::read_symlink(at, error);  // an absolute target stands alone
  }
  place.path = at.string();
  place.direct = place.direct || is_of_system(place.path);
  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && !S_ISDIR(status.st_mode)) {
    const int descriptor = standard_descriptor_of(status);
    place.standard_output = descriptor == STDOUT_FILENO;
    if (S_ISREG(status.st_mode)) place.descriptor = descriptor;
    place.direct = place.direct || place.descriptor >= 0 || !S_ISREG(status.st_mode);
  }
  return place;
}

TextFile::TextFile(const std::string& path)
    : path_(path), place_(text_place_of(path)), file_(open_place(path, place_)) {}

TextFile::~TextFile() {
  if (file_ != nullptr && !place_.direct) unlink(place_.partial().c_str());
}

void TextFile::write(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size()) {
    fail("writing {} failed ({}); free some space or choose another path", path_,
         std::strerror(errno));
  }
}

void TextFile::close() {
  bool good = std::fflush(file_.get()) == 0;
  int error = errno;
  // Pipes and terminals cannot be synced; that is no failure.
  if (good && fsync(fileno(file_.get())) != 0 && errno != EINVAL && errno != EROFS) {
    good = false;
    error = errno;
  }
  if (std::fclose(file_.release()) != 0 && good) {
    good = false;
    error = errno;
  }
  if (good && !place_.direct && std::rename(place_.partial().c_str(), place_.path.c_str()) != 0) {
    good = false;
    error = errno;
  }
  if (good) return;
  if (!place_.direct) unlink(place_.partial().c_str());
  fail("writing {} failed ({}); free some space or choose another path", path_,
       std::strerror(error));
}

}  // namespace atl::io
