#include "io/text_file.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "compute/error.hpp"

namespace atl::io {

TextFile::TextFile(const std::string& path) : path_(path), file_(std::fopen(path.c_str(), "w")) {
  if (file_ == nullptr) {
    fail("cannot write {} ({}); check the path and its permissions", path_, std::strerror(errno));
  }
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
  require(good, "writing {} failed ({}); free some space or choose another path", path_,
          std::strerror(error));
}

}  // namespace atl::io
