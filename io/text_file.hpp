#pragma once
// A text file that is checked before a long run and written whole at its end.

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>

namespace atl::io {

/// Where a text file given as `path` is written.
struct TextPlace {
  std::string path;     ///< with links resolved
  bool direct = false;  ///< what is there cannot be replaced: a pipe, a device, an open file
  int descriptor = -1;  ///< of standard output or error, when the place is that file
  bool standard_output = false;  ///< it is where standard output goes
  /// Where a file that is not direct is until it is whole.
  std::string partial() const { return path + ".partial"; }
};
TextPlace text_place_of(const std::string& path);

/// Opened for writing at once, so that an unwritable path is refused before any work; every write
/// and the close are checked, so that a full disk is an Error and not a short file. What is written
/// goes to `path`.partial and takes the name at close(): a run that fails leaves an earlier file as
/// it was; a link to it stays one. Pipes, devices and open files (/dev/stdout) are written to
/// directly.
class TextFile {
 public:
  /// Throws Error when `path` cannot be opened for writing.
  explicit TextFile(const std::string& path);
  TextFile(TextFile&& other) noexcept = default;
  TextFile& operator=(TextFile&& other) = delete;
  ~TextFile();  ///< without close(): removes what was written
  const TextPlace& place() const { return place_; }
  void write(std::string_view text);
  /// Flushes to disk, closes and renames. Throws Error when anything could not be written.
  void close();

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;  // as given
  TextPlace place_;
  std::unique_ptr<std::FILE, Closer> file_;
};

}  // namespace atl::io
