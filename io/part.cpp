#include "io/part.hpp"

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "compute/error.hpp"

namespace atl::io {

void PartReader::Free::operator()(char* text) const {
  std::free(text);
}

PartReader::PartReader(const std::string& path)
    : path_(path), file_(std::fopen(path.c_str(), "rbe")) {
  require(file_ != nullptr, "cannot read {} ({}); check the path and its permissions", path_,
          std::strerror(errno));
  const auto first = read_line();
  require(first && first->line == 0,
          "{} does not begin as a part of a run does; remove it and compute this shard again",
          path_);
  header_ = first->result;
}

std::optional<JournalEntry> PartReader::read_line() {
  char* text = text_.release();
  errno = 0;
  const ssize_t bytes = getline(&text, &capacity_, file_.get());
  text_.reset(text);
  if (bytes < 0) {
    require(std::feof(file_.get()) != 0, "cannot read {} ({}); check the disk", path_,
            std::strerror(errno));
    return {};
  }
  const auto entry = text[bytes - 1] == '\n'
                         ? parse_journal_line({text, static_cast<std::size_t>(bytes - 1)})
                         : std::nullopt;
  require(entry.has_value(), "{} {}; remove it and compute this shard again", path_,
          header_.empty() ? "does not begin as a part of a run does"
                          : fmt::format("is damaged after the result of line {}", last_line_));
  return entry;
}

std::optional<JournalEntry> PartReader::next() {
  const auto entry = read_line();
  if (!entry) return {};
  require(entry->line > last_line_,
          "{} is damaged (line {} of the requests comes after line {}); remove it and compute this "
          "shard again",
          path_, entry->line, last_line_);
  last_line_ = entry->line;
  return entry;
}

bool PartReader::lock() {
  return flock(fileno(file_.get()), LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

bool PartReader::is_there() const {
  struct stat own {};
  struct stat named {};
  return fstat(fileno(file_.get()), &own) == 0 && stat(path_.c_str(), &named) == 0 &&
         own.st_dev == named.st_dev && own.st_ino == named.st_ino;
}

std::optional<FileSum> sum_of_file(const std::string& path) {
  constexpr std::size_t piece_bytes = std::size_t{1} << 20;
  std::ifstream file(path, std::ios::binary);
  if (!file) return {};
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_64bits_reset(state.get());
  std::vector<char> buffer(piece_bytes);
  FileSum sum;
  do {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    XXH3_64bits_update(state.get(), buffer.data(), static_cast<std::size_t>(file.gcount()));
    sum.bytes += file.gcount();
  } while (file);
  if (!file.eof()) return {};
  sum.checksum = XXH3_64bits_digest(state.get());
  return sum;
}

}  // namespace atl::io
