#pragma once
// Lines of a file, one after the other or from a given byte on.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace atl::io {

/// Reads lines of bounded length; the rest of a longer line is skipped.
class LineReader {
 public:
  /// Throws Error where the file cannot be read.
  LineReader(const std::string& path, std::size_t max_bytes);

  /// The file's first bytes, before any line is read; a few at least, where it has them.
  std::string_view start();
  /// The next line without its end, and how long it was; false at the end of the file.
  bool next(std::string& line, std::size_t& length);
  /// The byte of the file at which the next line begins.
  std::int64_t offset() const { return first_ + static_cast<std::int64_t>(begin_); }
  /// Goes on at this byte, not of a pipe. Throws Error where that cannot be.
  void seek(std::int64_t offset);

 private:
  bool refill();

  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::size_t max_bytes_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<char> buffer_;
  std::int64_t first_ = 0;  // byte of the file at which the buffer begins
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

}  // namespace atl::io
