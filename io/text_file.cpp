#include "io/text_file.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "compute/error.hpp"

namespace atl::io {

namespace {

[[noreturn]] void refuse(const std::string& path, int error) {
  fail("cannot write {} ({}); check the path and its permissions", path, std::strerror(error));
}

/// Where to write until the file is whole. Throws Error when `path` may not be replaced.
std::string partial_of(const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) return path + ".partial";
  if (S_ISDIR(status.st_mode)) refuse(path, EISDIR);
  if (!S_ISREG(status.st_mode)) return path;
  if (access(path.c_str(), W_OK) != 0) refuse(path, errno);
  return path + ".partial";
}

}  // namespace

TextFile::TextFile(const std::string& path)
    : path_(path), partial_(partial_of(path)), file_(std::fopen(partial_.c_str(), "w")) {
  if (file_ == nullptr) refuse(path, errno);
}

TextFile::~TextFile() {
  if (file_ != nullptr && partial_ != path_) unlink(partial_.c_str());
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
  if (good && partial_ != path_ && std::rename(partial_.c_str(), path_.c_str()) != 0) {
    good = false;
    error = errno;
  }
  if (good) return;
  if (partial_ != path_) unlink(partial_.c_str());
  fail("writing {} failed ({}); free some space or choose another path", path_,
       std::strerror(error));
}

}  // namespace atl::io
