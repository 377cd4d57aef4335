#pragma once
// A text file that is checked before a long run and written whole at its end.

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace atl::io {

/// Opened for writing at once, so that an unwritable path is refused before any work; every write
/// and the close are checked, so that a full disk is an Error and not a short file. What is written
/// goes to `path`.partial and takes the name at close(): a run that fails leaves an earlier file as
/// it was. Pipes and devices are written to directly.
class TextFile {
 public:
  /// Throws Error when `path` cannot be opened for writing.
  explicit TextFile(const std::string& path);
  TextFile(TextFile&& other) noexcept = default;
  TextFile& operator=(TextFile&& other) = delete;
  ~TextFile();  ///< without close(): removes what was written
  /// Whether writes go straight to a pipe or device, which keeps what it got.
  bool is_direct() const { return partial_ == path_; }
  void write(std::string_view text);
  /// Flushes to disk, closes and renames. Throws Error when anything could not be written.
  void close();

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::string partial_;  // equal to path_ for pipes and devices
  std::unique_ptr<std::FILE, Closer> file_;
};

}  // namespace atl::io
