#pragma once
// Finished results on disk while a run goes on: what a killed run leaves for the one that resumes.

#include <compare>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

namespace atl::io {

/// One finished request as the journal keeps it: {"line":N,"xxh3_64":"...","result":RESULT} and a
/// newline. `line` is the request's line in the input, `result` its line of the results. A number
/// below 0 is that of a request which was refused: its line is kept there for the end of this run,
/// and a run that resumes finds the reason again.
std::string journal_line(std::int64_t line, std::string_view result);

/// What such a line says.
struct JournalEntry {
  std::int64_t line = 0;
  std::string_view result;  ///< a part of the text that was parsed
};
/// Reads one journal line (without its newline); nothing unless it is whole and undamaged.
std::optional<JournalEntry> parse_journal_line(std::string_view text);

/// The file OUTPUT.journal: a header (as if of line 0), then a line for each finished request, in
/// the order in which they were finished. One process holds it (a lock keeps a second run out); a
/// line counts when its newline and its checksum are there, so that a torn write costs that line
/// only. What has been appended survives this process at once, and the machine after a second: a
/// thread of its own syncs, so that no pass waits for a disk.
class ResultJournal {
 public:
  /// Opens the journal beside `output` and reads what an earlier run left. Throws Error when it
  /// cannot be written, is not the journal of a run, or another run holds it. With `in_memory`
  /// there is no file and nothing to resume, for outputs that are no files either.
  ResultJournal(const std::string& output, bool in_memory);
  /// Leaves the file for a run that resumes, unless nothing is in it. One that was there before
  /// start() or resume() stays.
  ~ResultJournal();
  ResultJournal(const ResultJournal&) = delete;
  ResultJournal& operator=(const ResultJournal&) = delete;

  const std::string& path() const { return path_; }
  /// The header that the earlier run wrote; empty when there is none, or a damaged one.
  const std::string& header() const { return header_; }
  std::int64_t num_results() const { return num_results_; }
  /// Lines that were torn or damaged, and so do not count.
  std::int64_t num_damaged() const { return num_damaged_; }

  /// Drops what is there and starts anew. `header` is JSON on one line.
  void start(const std::string& header);
  /// Goes on after the earlier run's last whole line.
  void resume();

  /// Appends lines made by journal_line(). Throws Error when the disk is full or the file was
  /// removed; what was appended before stays whole.
  void append(std::string_view lines);
  bool has(std::int64_t line) const { return place_of(line) != nullptr; }
  /// What an earlier run left of these lines does not count.
  void drop(const std::function<bool(std::int64_t line)>& dropped);
  /// The result of a request that has one. Throws Error when it cannot be read back.
  std::string result(std::int64_t line) const;
  /// Returns when everything appended is on the disk. Throws Error where that failed.
  void sync();
  /// The results have been written elsewhere: removes the file.
  void remove();

 private:
  struct Place {
    std::int64_t line = 0;
    std::uint64_t offset = 0;  // of its journal line; of several the last one counts
    auto operator<=>(const Place&) const = default;
  };
  const Place* place_of(std::int64_t line) const;
  void read();
  /// Notes where the whole lines of `text`, which begins at `offset` of the file, are.
  void find_lines(std::string_view text, std::uint64_t offset);
  void write(std::string_view text);
  void start_syncing();
  void stop_syncing();
  void sync_now();

  std::string path_;
  bool in_memory_;
  bool is_new_ = false;  // made by this object
  bool in_use_ = false;  // start() or resume() ran
  std::string header_;
  int file_ = -1;
  std::uint64_t size_ = 0;  // bytes of whole lines; the next line goes there
  std::int64_t num_damaged_ = 0;
  std::int64_t num_results_ = 0;
  // 16 bytes a result; grows without being copied. By line, from the last question on.
  mutable std::deque<Place> places_;
  mutable bool sorted_ = true;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread syncer_;
  bool dirty_ = false;     // appended since the last sync; under mutex_
  bool stopping_ = false;  // under mutex_
  std::string failure_;    // of the syncing thread; under mutex_
};

}  // namespace atl::io
