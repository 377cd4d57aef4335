#pragma once
// A part: what one of several runs that share their requests leaves, until all are joined.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "io/journal.hpp"

namespace atl::io {

/// Reads a part. Its lines are those of a journal (see journal_line()), a header first, then one
/// for each request in the order of the input; but it is written whole, so every line must be good.
class PartReader {
 public:
  /// Throws Error when the file cannot be read, or does not begin with an undamaged header.
  explicit PartReader(const std::string& path);

  const std::string& path() const { return path_; }
  const std::string& header() const { return header_; }
  /// The next line's entry, which holds until the next call; nothing at the end of the file. Throws
  /// Error when the line is damaged, torn, or not behind the one before it.
  std::optional<JournalEntry> next();

  /// Takes the file's lock; false when another process has it. File systems without locks are taken
  /// at their word.
  bool lock();
  /// Whether the file still has its name.
  bool is_there() const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  struct Free {
    void operator()(char* text) const;
  };
  std::optional<JournalEntry> read_line();

  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::unique_ptr<char, Free> text_;  // grown by getline()
  std::size_t capacity_ = 0;
  std::int64_t last_line_ = 0;
  std::string header_;
};

/// Length and xxh3-64 of a file's bytes.
struct FileSum {
  std::int64_t bytes = 0;
  std::uint64_t checksum = 0;
  bool operator==(const FileSum&) const = default;
};
/// Reads all of it; nothing where there is no file, or it cannot be read.
std::optional<FileSum> sum_of_file(const std::string& path);

}  // namespace atl::io
