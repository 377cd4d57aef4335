#include "app/run/request_source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <span>
#include <thread>
#include <utility>

#include "compute/error.hpp"
#include "io/running_checksum.hpp"

namespace atl {

namespace {

constexpr std::int64_t requests_of_block = 256;
constexpr const char* of_the_first = " of the first ";
// The thread reads no further while so many bytes of errors wait to be taken.
constexpr std::size_t most_waiting_errors = std::size_t{16} << 20;

/// How many requests such an input speaks of; nothing where it is of all of them.
std::optional<std::int64_t> number_in(const std::string& input) {
  const std::size_t at = input.find(of_the_first);
  if (at == std::string::npos) return std::nullopt;
  const std::string_view digits =
      std::string_view(input).substr(at + std::string_view(of_the_first).size());
  std::int64_t number = -1;
  std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return number;
}

std::int64_t bytes_of(const io::Request& request) {
  std::size_t bytes = sizeof(request) + 64 + request.id.size() + 4 * request.tokens.size() +
                      4 * request.stop_token_ids.size() + 8 * request.logit_bias.size();
  for (const std::string& stop : request.stop) bytes += sizeof(stop) + stop.size();
  if (request.batch) bytes += request.batch->model.size() + request.batch->prompt.size();
  return static_cast<std::int64_t>(bytes);
}

template <class Container>
void append(Container& all, Container& more) {
  all.insert(all.end(), std::move_iterator(more.begin()), std::move_iterator(more.end()));
}

}  // namespace

/// Some requests as they were read, with what the identity needs of them.
struct RequestSource::Block {
  std::vector<RequestEntry> entries;
  std::vector<std::string> names;
  std::vector<std::pair<std::size_t, io::Request>> held;
  std::vector<Refused> refused;
  std::size_t refused_bytes = 0;
  std::vector<std::uint64_t> sums;  // after each line, those of other shards with them
  std::optional<std::int64_t> first_drawing;
};

/// A line that was read again.
struct RequestSource::Fetched {
  std::size_t first = 0;  // of its requests
  std::vector<io::Request> requests;
  std::string error;  // why there are none
};

/// The reading thread, and what it hands over.
struct RequestSource::Reading {
  Reading(std::string file, const io::RequestLimits& given, std::optional<Shard> of,
          bool with_names, std::int64_t at_most)
      : path(std::move(file)),
        limits(given),
        reader(path, given),
        shard(of),
        names(with_names),
        held_at_most(at_most) {}
  ~Reading() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    wanted.notify_one();
    if (thread.joinable()) thread.join();
  }

  struct Job {
    std::size_t first = 0;
    RequestEntry entry;
  };

  Block next_block(std::int64_t most, bool all_cores);
  void add(io::Request request, std::string_view identity, Block& block);
  Fetched fetched_by(const Job& job);
  void run();
  void read_block(std::unique_lock<std::mutex>& lock);
  bool may_read() const { return !ended && ready.refused_bytes < most_waiting_errors; }

  const std::string path;
  io::RequestLimits limits;
  io::RequestReader reader;
  std::optional<io::LineFetcher> fetcher;
  std::optional<Shard> shard;
  bool names;
  std::int64_t held_at_most;
  std::atomic<std::int64_t> held_bytes{0};
  std::atomic<bool> all_held{true};
  io::RunningChecksum sum;
  std::int64_t number = 0;  // of the next line in the file, from 0
  std::size_t index = 0;    // of the next of this run's requests
  bool at_end = false;

  std::mutex mutex;
  std::condition_variable changed;  // something was read
  std::condition_variable wanted;   // something is to be read, or the end
  Block ready;                      // under mutex
  std::deque<Job> jobs;             // under mutex
  std::vector<Fetched> fetched;     // under mutex
  bool ended = false;               // under mutex; and with it an error
  std::exception_ptr error;         // under mutex
  bool awaited = false;             // under mutex: somebody has nothing to do until there are more
  bool stopping = false;            // under mutex
  std::thread thread;
};

void RequestSource::Reading::add(io::Request request, std::string_view identity, Block& block) {
  block.entries.push_back(entry_of(request, identity));
  if (names) block.names.push_back(io::name_of(request));
  const std::size_t own = index++;
  if (!request.error.empty()) {
    block.refused.push_back(refused_of(request));
    block.refused_bytes += block.refused.back().result.size();
    return;
  }
  const std::int64_t bytes = bytes_of(request);
  if (held_bytes + bytes > held_at_most) {
    all_held = false;
    return;
  }
  held_bytes += bytes;
  block.held.emplace_back(own, std::move(request));
}

/// The requests of up to `most` lines of the file; of fewer at its end.
RequestSource::Block RequestSource::Reading::next_block(std::int64_t most, bool all_cores) {
  Block block;
  for (std::int64_t lines = 0; lines < most && !reader.at_end(); ++lines) {
    // All parts of one line are in memory, and those that may be held.
    for (io::Request& request : reader.read(1, all_cores)) {
      const std::string text = identity_text(request);
      sum.add(std::as_bytes(std::span(text)));
      if (!block.first_drawing && draws_without_seed(request)) block.first_drawing = number;
      const bool line_ends = request.part + 1 == request.parts;
      if (!shard || shard->has(number)) add(std::move(request), text, block);
      if (!line_ends) continue;
      block.sums.push_back(sum.value());
      ++number;
    }
  }
  at_end = reader.at_end();
  return block;
}

RequestSource::Fetched RequestSource::Reading::fetched_by(const Job& job) {
  Fetched line;
  line.first = job.first;
  try {
    if (!fetcher) {
      limits.format = reader.format();
      fetcher.emplace(path, limits);
    }
    line.requests = fetcher->fetch(static_cast<std::int64_t>(job.entry.offset),
                                   static_cast<std::int64_t>(job.entry.line));
  } catch (const std::exception& failure) {
    line.error = failure.what();
  }
  for (const io::Request& request : line.requests) held_bytes += bytes_of(request);
  return line;
}

void RequestSource::Reading::read_block(std::unique_lock<std::mutex>& lock) {
  const bool all_cores = awaited;  // while others are served, the cores are theirs
  lock.unlock();
  Block block;
  std::exception_ptr failure;
  try {
    block = next_block(requests_of_block, all_cores);
  } catch (...) {
    failure = std::current_exception();
  }
  lock.lock();
  append(ready.entries, block.entries);
  append(ready.names, block.names);
  append(ready.held, block.held);
  append(ready.refused, block.refused);
  ready.refused_bytes += block.refused_bytes;
  append(ready.sums, block.sums);
  if (!ready.first_drawing) ready.first_drawing = block.first_drawing;
  ended = at_end || failure;
  error = failure;
}

/// What is asked for comes first: somebody may wait for it.
void RequestSource::Reading::run() {
  std::unique_lock lock(mutex);
  for (;;) {
    wanted.wait(lock, [this] { return stopping || !jobs.empty() || may_read(); });
    if (stopping) return;
    if (jobs.empty()) {
      read_block(lock);
    } else {
      const Job job = jobs.front();
      jobs.pop_front();
      lock.unlock();
      Fetched line = fetched_by(job);
      lock.lock();
      fetched.push_back(std::move(line));
    }
    changed.notify_one();
  }
}

RequestSource::RequestSource(const std::string& path, const io::RequestLimits& limits,
                             std::optional<Shard> shard, bool names, std::int64_t held_bytes) {
  std::error_code ignored;
  const bool again = std::filesystem::is_regular_file(path, ignored);
  reading_ = std::make_unique<Reading>(
      path, limits, shard, names, again ? held_bytes : std::numeric_limits<std::int64_t>::max());
  // One more than the file is judged by: one that ends there is then known to.
  Block beginning = reading_->next_block(reading_->reader.beginning_left() + 1, true);
  take(beginning);
  all_taken_ = reading_->ended = reading_->at_end;
  if (all_taken_ && reading_->all_held) return;
  reading_->thread = std::thread([reading = reading_.get()] { reading->run(); });
  // What is not a file may come as slowly as somebody types.
  if (!again) take_all();
}

RequestSource::~RequestSource() = default;

void RequestSource::take(Block& block) {
  entries_.insert(entries_.end(), block.entries.begin(), block.entries.end());
  append(names_, block.names);
  append(refused_, block.refused);
  for (auto& [request, whole] : block.held) held_.emplace(request, std::move(whole));
  sums_.insert(sums_.end(), block.sums.begin(), block.sums.end());
  if (!first_drawing_) first_drawing_ = block.first_drawing;
}

void RequestSource::take(Fetched& fetched) {
  asked_.erase(fetched.first);
  const auto line = static_cast<std::int64_t>(entries_[fetched.first].line);
  const auto require_same = [&](bool same, const std::string& why) {
    require(same,
            "line {} of {} could not be read again{}{}: the input must stay as it is until the run "
            "has ended; give it back and run again with --resume",
            line, reading_->path, why.empty() ? " as it was" : ": ", why);
  };
  require_same(fetched.error.empty(), fetched.error);
  std::size_t end = fetched.first + 1;
  while (end < size() && entries_[end].later_part == 1) ++end;
  require_same(fetched.requests.size() == end - fetched.first, "");
  for (std::size_t at = fetched.first; at < end; ++at) {
    io::Request& request = fetched.requests[at - fetched.first];
    require_same(is_of(entries_[at], request), "");
    const std::int64_t bytes = bytes_of(request);
    const bool wanted = entries_[at].done == 0 && entries_[at].usable == 1;
    if (!wanted || !held_.emplace(at, std::move(request)).second) reading_->held_bytes -= bytes;
  }
}

void RequestSource::take_from_thread(WaitFor what) {
  Block block;
  std::vector<Fetched> fetched;
  std::exception_ptr error;
  {
    std::unique_lock lock(reading_->mutex);
    reading_->awaited = what == WaitFor::requests;
    if (what != WaitFor::nothing) {
      reading_->changed.wait(lock, [&] {
        return what == WaitFor::fetched ? !reading_->fetched.empty()
                                        : reading_->ended || !reading_->ready.sums.empty();
      });
    }
    std::swap(block, reading_->ready);
    std::swap(fetched, reading_->fetched);
    all_taken_ = reading_->ended;
    error = std::exchange(reading_->error, nullptr);
  }
  reading_->wanted.notify_one();
  take(block);
  for (Fetched& line : fetched) take(line);
  if (error) std::rethrow_exception(error);
}

bool RequestSource::take_more() {
  const std::size_t before = size();
  while (!all_taken_ && size() == before) take_from_thread(WaitFor::requests);
  return size() > before;
}

void RequestSource::take_ready() {
  if (!all_taken_ || !asked_.empty()) take_from_thread(WaitFor::nothing);
}

void RequestSource::take_all() {
  while (take_more()) {
  }
}

std::size_t RequestSource::first_part(std::size_t request) const {
  while (entries_[request].later_part == 1) --request;
  return request;
}

/// Asks for its line, unless that is under way. `at_once`: before all others.
void RequestSource::ask(std::size_t request, bool at_once) {
  const std::size_t first = first_part(request);
  const bool is_new = asked_.insert(first).second;
  if (!is_new && !at_once) return;
  {
    const std::lock_guard lock(reading_->mutex);
    auto& jobs = reading_->jobs;
    const auto before = std::ranges::find(jobs, first, &Reading::Job::first);
    if (!is_new && before == jobs.end()) return;
    if (before != jobs.end()) jobs.erase(before);
    jobs.insert(at_once ? jobs.begin() : jobs.end(), {first, entries_[first]});
  }
  reading_->wanted.notify_one();
}

void RequestSource::expect(const std::vector<std::int32_t>& requests) {
  for (const std::int32_t each : requests) {
    const auto request = static_cast<std::size_t>(each);
    if (!held_.contains(request)) ask(request, false);
  }
}

const io::Request& RequestSource::whole(std::size_t request) {
  if (const auto found = held_.find(request); found != held_.end()) return found->second;
  ask(request, true);
  while (!held_.contains(request)) take_from_thread(WaitFor::fetched);
  return held_.at(request);
}

io::Request RequestSource::give(std::size_t request) {
  whole(request);
  io::Request given = std::move(held_.extract(request).mapped());
  reading_->held_bytes -= bytes_of(given);
  entries_[request].done = 1;
  return given;
}

void RequestSource::forget(std::size_t request) {
  entries_[request].done = 1;
  const auto found = held_.find(request);
  if (found == held_.end()) return;
  reading_->held_bytes -= bytes_of(found->second);
  held_.erase(found);
}

bool RequestSource::draws(std::int64_t first_requests) const {
  return first_drawing_ && *first_drawing_ < first_requests;
}

InputFacts RequestSource::facts() const {
  InputFacts facts;
  facts.text = fmt::format("{:016x}", sums_.empty() ? 0 : sums_.back());
  if (!all_taken_) facts.text += fmt::format("{}{}", of_the_first, num_taken());
  facts.draws_from_job_seed = draws(num_taken());
  return facts;
}

InputFacts RequestSource::facts_like(const std::string& input) const {
  const auto number = number_in(input);
  if (!number || *number < 1 || *number > num_taken()) return facts();
  return {fmt::format("{:016x}{}{}", sums_[static_cast<std::size_t>(*number - 1)], of_the_first,
                      *number),
          draws(*number)};
}

}  // namespace atl
