#include "io/line_reader.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "compute/error.hpp"

namespace atl::io {

LineReader::LineReader(const std::string& path, std::size_t max_bytes)
    : path_(path), max_bytes_(max_bytes), buffer_(1 << 16) {
  std::error_code ignored;
  file_.reset(std::fopen(path.c_str(), "rb"));
  if (!file_) {
    const int reason = errno;
    fail("cannot read {}: {} (working directory {}); check --input", path, std::strerror(reason),
         std::filesystem::current_path(ignored).string());
  }
  require(!std::filesystem::is_directory(path, ignored),
          "cannot read {}: it is a folder; give a file of requests, one JSON object a line", path);
}

std::string_view LineReader::start() {
  if (end_ == 0) refill();
  return {buffer_.data(), end_};
}

bool LineReader::next(std::string& line, std::size_t& length) {
  line.clear();
  length = 0;
  while (begin_ < end_ || refill()) {
    const char* start = buffer_.data() + begin_;
    const auto* newline = static_cast<const char*>(std::memchr(start, '\n', end_ - begin_));
    const std::size_t part = newline == nullptr ? end_ - begin_ : newline - start;
    line.append(start, std::min(part, max_bytes_ - line.size()));
    length += part;
    begin_ += part + (newline == nullptr ? 0 : 1);
    if (newline != nullptr) return true;
  }
  return length > 0;
}

void LineReader::seek(std::int64_t offset) {
  const std::int64_t ahead = offset - first_;
  if (ahead >= 0 && ahead <= static_cast<std::int64_t>(end_)) {
    begin_ = static_cast<std::size_t>(ahead);
    return;
  }
  require(fseeko(file_.get(), offset, SEEK_SET) == 0, "cannot read {} again: {}", path_,
          std::strerror(errno));
  first_ = offset;
  begin_ = end_ = 0;
}

bool LineReader::refill() {
  first_ += static_cast<std::int64_t>(end_);
  begin_ = 0;
  end_ = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
  if (std::ferror(file_.get()) != 0) fail("cannot read {}: {}", path_, std::strerror(errno));
  return end_ > 0;
}

}  // namespace atl::io
