#pragma once
// A text file that is checked before a long run and written whole at its end.

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace atl::io {

/// Opened for writing at once, so that an unwritable path is refused before any work; every write
/// and the close are checked, so that a full disk is an Error and not a short file.
class TextFile {
 public:
  /// Throws Error when `path` cannot be opened for writing. An existing file is replaced.
  explicit TextFile(const std::string& path);
  void write(std::string_view text);
  /// Flushes to disk and closes. Throws Error when anything could not be written.
  void close();

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Closer> file_;
};

}  // namespace atl::io
