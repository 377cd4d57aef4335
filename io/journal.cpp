#include "io/journal.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "compute/error.hpp"
#include "io/model_file.hpp"

namespace atl::io {

namespace {

constexpr std::string_view line_key = R"({"line":)";
constexpr std::string_view sum_key = R"(,"xxh3_64":")";
constexpr std::string_view result_key = R"(","result":)";
constexpr std::size_t sum_digits = 16;
constexpr std::chrono::seconds time_between_syncs(1);
constexpr std::size_t read_bytes = std::size_t{1} << 22;

/// Over both, so that a result cannot pass for that of another request.
std::uint64_t sum_of(std::int64_t line, std::string_view result) {
  const std::string text = fmt::format("{} {}", line, result);
  return checksum_of(std::as_bytes(std::span(text)));
}

[[noreturn]] void refuse(const std::string& path, int error) {
  fail("cannot write {} ({}); check the path and its permissions", path, std::strerror(error));
}

}  // namespace

std::string journal_line(std::int64_t line, std::string_view result) {
  return fmt::format("{}{}{}{:016x}{}{}}}\n", line_key, line, sum_key, sum_of(line, result),
                     result_key, result);
}

std::optional<JournalEntry> parse_journal_line(std::string_view text) {
  const auto skip = [&text](std::string_view expected) {
    if (!text.starts_with(expected)) return false;
    text.remove_prefix(expected.size());
    return true;
  };
  JournalEntry entry;
  if (!skip(line_key)) return {};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), entry.line);
  if (error != std::errc()) return {};
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  if (!skip(sum_key) || text.size() < sum_digits) return {};
  std::uint64_t sum = 0;
  const char* digits_end = text.data() + sum_digits;
  if (std::from_chars(text.data(), digits_end, sum, 16).ptr != digits_end) return {};
  text.remove_prefix(sum_digits);
  if (!skip(result_key) || !text.ends_with('}')) return {};
  text.remove_suffix(1);
  if (sum_of(entry.line, text) != sum) return {};
  entry.result = text;
  return entry;
}

ResultJournal::ResultJournal(const std::string& output, bool in_memory)
    : path_(output + ".journal"), in_memory_(in_memory) {
  if (in_memory) {
    file_ = memfd_create("atoll-results", MFD_CLOEXEC);
  } else {
    constexpr int flags = O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW;  // a pipe would block
    file_ = open(path_.c_str(), flags);
    is_new_ = file_ < 0 && errno == ENOENT;
    if (is_new_) file_ = open(path_.c_str(), flags | O_CREAT, 0666);
  }
  if (file_ < 0) refuse(path_, errno);
  struct stat status {};
  if (fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(file_);
    fail("cannot write {}: it is no regular file; move it away or give another --output", path_);
  }
  // File systems without locks are taken at their word.
  if (flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close(file_);
    fail("cannot write {}: another run is writing it; wait for its end or give another --output",
         path_);
  }
  try {
    read();
  } catch (...) {
    close(file_);
    throw;
  }
}

ResultJournal::~ResultJournal() {
  stop_syncing();
  if (file_ < 0) return;
  if (num_results_ == 0 && !in_memory_ && (is_new_ || in_use_)) unlink(path_.c_str());
  close(file_);
}

void ResultJournal::read() {
  std::string text;  // from the last whole line's end on
  std::vector<char> buffer(read_bytes);
  for (;;) {
    const auto at = static_cast<off_t>(size_ + text.size());
    const ssize_t got = pread(file_, buffer.data(), buffer.size(), at);
    if (got < 0) fail("cannot read {} ({}); check the disk", path_, std::strerror(errno));
    if (got == 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(got));
    if (size_ == 0 && !text.starts_with(line_key) && !line_key.starts_with(text)) {
      fail(
          "cannot write {}: it does not begin as the journal of a run does, and would be lost; "
          "move "
          "it away or give another --output",
          path_);
    }
    std::size_t whole = text.rfind('\n');
    if (whole == std::string::npos) continue;
    ++whole;
    find_lines(std::string_view(text).substr(0, whole), size_);
    size_ += whole;
    text.erase(0, whole);
  }
  if (!text.empty()) ++num_damaged_;
  // What was refused is found out again; of a request's results the last one counts.
  std::erase_if(places_, [](const Place& place) { return place.line < 0; });
  std::ranges::sort(places_);
  const auto same = [](const Place& a, const Place& b) { return a.line == b.line; };
  const auto first = std::unique(places_.rbegin(), places_.rend(), same).base();
  places_.erase(places_.begin(), first);
  num_results_ = std::ssize(places_);
  sorted_ = true;
}

void ResultJournal::find_lines(std::string_view text, std::uint64_t offset) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    const auto entry = parse_journal_line(line);
    if (entry && entry->line == 0) {
      header_ = entry->result;
    } else if (entry) {
      places_.push_back({entry->line, offset});
      if (entry->line > 0) ++num_results_;
      sorted_ = false;
    } else {
      ++num_damaged_;
    }
    offset += line.size() + 1;
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
}

void ResultJournal::start(const std::string& header) {
  in_use_ = true;
  if (ftruncate(file_, 0) != 0) refuse(path_, errno);
  places_.clear();
  num_results_ = 0;
  size_ = 0;
  num_damaged_ = 0;
  header_ = header;
  write(journal_line(0, header));
  start_syncing();
}

void ResultJournal::resume() {
  in_use_ = true;
  // A torn last line goes, so that the next one starts a line of its own.
  if (ftruncate(file_, static_cast<off_t>(size_)) != 0) refuse(path_, errno);
  start_syncing();
}

void ResultJournal::write(std::string_view text) {
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t wrote =
        pwrite(file_, text.data() + done, text.size() - done, static_cast<off_t>(size_ + done));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) {
      const int error = wrote < 0 ? errno : ENOSPC;
      // A torn line would do no harm; what cannot be cut off is left.
      static_cast<void>(!ftruncate(file_, static_cast<off_t>(size_)));
      fail(
          "writing {} failed ({}); {} finished results are safe in it: free some space and run "
          "again with --resume",
          path_, std::strerror(error), num_results());
    }
    done += static_cast<std::size_t>(wrote);
  }
  size_ += text.size();
}

void ResultJournal::append(std::string_view lines) {
  if (lines.empty()) return;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw Error(failure_);
  }
  const std::uint64_t offset = size_;
  write(lines);
  find_lines(lines, offset);
  const std::lock_guard lock(mutex_);
  dirty_ = true;
  changed_.notify_all();
}

const ResultJournal::Place* ResultJournal::place_of(std::int64_t line) const {
  if (!sorted_) std::ranges::sort(places_);
  sorted_ = true;
  const auto behind = std::ranges::upper_bound(places_, line, {}, &Place::line);
  return behind == places_.begin() || std::prev(behind)->line != line ? nullptr
                                                                      : &*std::prev(behind);
}

void ResultJournal::drop(const std::function<bool(std::int64_t line)>& dropped) {
  std::erase_if(places_, [&](const Place& place) { return dropped(place.line); });
  num_results_ = std::ssize(places_);
}

std::string ResultJournal::result(std::int64_t line) const {
  const Place* place = place_of(line);
  require(place != nullptr, "internal: the journal has no result of line {}", line);
  std::string text;
  std::size_t end = std::string::npos;
  for (std::size_t more = 4096; end == std::string::npos; more *= 2) {
    const std::size_t before = text.size();
    text.resize(before + more);
    const ssize_t got =
        pread(file_, text.data() + before, more, static_cast<off_t>(place->offset + before));
    text.resize(before + static_cast<std::size_t>(std::max<ssize_t>(0, got)));
    if (got < 0 && errno == EINTR) continue;
    require(got > 0, "cannot read {} back ({}); check the disk, then run again with --resume",
            path_, got < 0 ? std::strerror(errno) : "it has become shorter");
    end = text.find('\n', before);
  }
  const auto entry = parse_journal_line(std::string_view(text).substr(0, end));
  require(entry && entry->line == line,
          "cannot read {} back (it has been changed); check the disk, then run again with --resume",
          path_);
  return std::string(entry->result);
}

void ResultJournal::start_syncing() {
  if (in_memory_) return;
  syncer_ = std::thread([this] {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      changed_.wait_for(lock, time_between_syncs, [this] { return stopping_; });
      if (!stopping_ && failure_.empty()) {
        lock.unlock();
        sync_now();
        lock.lock();
      }
    }
  });
}

void ResultJournal::stop_syncing() {
  if (!syncer_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  syncer_.join();
}

void ResultJournal::sync_now() {
  if (in_memory_) return;
  bool dirty = false;
  {
    const std::lock_guard lock(mutex_);
    std::swap(dirty, dirty_);
  }
  std::string problem;
  // Some file systems cannot sync; that is no failure.
  if (dirty && fdatasync(file_) != 0 && errno != EINVAL) problem = std::strerror(errno);
  struct stat status {};
  if (fstat(file_, &status) == 0 && status.st_nlink == 0) problem = "it was removed meanwhile";
  if (problem.empty()) return;
  const std::lock_guard lock(mutex_);
  failure_ =
      fmt::format("writing {} failed ({}); mend that and run again with --resume", path_, problem);
}

void ResultJournal::sync() {
  sync_now();
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw Error(failure_);
}

void ResultJournal::remove() {
  stop_syncing();
  if (!in_memory_) unlink(path_.c_str());
  close(file_);
  file_ = -1;
}

}  // namespace atl::io
