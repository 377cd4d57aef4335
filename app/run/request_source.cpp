#include "app/run/request_source.hpp"

#include <fmt/format.h>

#include <charconv>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <iterator>
#include <mutex>
#include <span>
#include <thread>
#include <utility>

#include "io/running_checksum.hpp"

namespace atl {

namespace {

constexpr std::int64_t requests_of_block = 256;  // some work for several threads
constexpr const char* of_the_first = " of the first ";

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

}  // namespace

/// The reading thread, and what it hands over.
struct RequestSource::Reading {
  Reading(const std::string& path, const io::RequestLimits& limits, std::optional<Shard> of)
      : reader(path, limits), shard(of) {}
  ~Reading() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    if (thread.joinable()) thread.join();
  }

  Block next_block(std::int64_t most, bool all_cores);
  bool is_awaited();
  void run();

  io::RequestReader reader;
  std::optional<Shard> shard;
  io::RunningChecksum sum;
  std::int64_t number = 0;  // of the next line in the file, from 0
  bool at_end = false;

  std::mutex mutex;
  std::condition_variable changed;
  Block ready;               // under mutex
  bool ended = false;        // under mutex; and with it an error
  std::exception_ptr error;  // under mutex
  bool awaited = false;      // under mutex: somebody has nothing to do until there are more
  bool stopping = false;     // under mutex
  std::thread thread;
};

/// The requests of up to `most` lines of the file; of fewer at its end.
RequestSource::Block RequestSource::Reading::next_block(std::int64_t most, bool all_cores) {
  Block block;
  std::vector<io::Request> requests = reader.read(most, all_cores);
  at_end = reader.at_end();
  for (io::Request& request : requests) {
    const std::string text = identity_text(request);
    sum.add(std::as_bytes(std::span(text)));
    if (!block.first_drawing && draws_without_seed(request)) block.first_drawing = number;
    const bool line_ends = request.part + 1 == request.parts;
    if (!shard || shard->has(number)) {
      block.requests.push_back(std::move(request));
    }
    if (!line_ends) continue;
    block.sums.push_back(sum.value());
    ++number;
  }
  return block;
}

bool RequestSource::Reading::is_awaited() {
  const std::lock_guard lock(mutex);
  return awaited;
}

void RequestSource::Reading::run() {
  std::exception_ptr failure;
  while (!at_end && !failure) {
    Block block;
    try {
      // While others are served, the cores are theirs.
      block = next_block(requests_of_block, is_awaited());
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    if (stopping) return;
    ready.requests.insert(ready.requests.end(), std::move_iterator(block.requests.begin()),
                          std::move_iterator(block.requests.end()));
    ready.sums.insert(ready.sums.end(), block.sums.begin(), block.sums.end());
    if (!ready.first_drawing) ready.first_drawing = block.first_drawing;
    ended = at_end || failure;
    error = failure;
    changed.notify_one();
  }
}

RequestSource::RequestSource(const std::string& path, const io::RequestLimits& limits,
                             std::optional<Shard> shard)
    : reading_(std::make_unique<Reading>(path, limits, shard)) {
  // One more than the file is judged by: one that ends there is then known to.
  Block beginning = reading_->next_block(reading_->reader.beginning_left() + 1, true);
  take(beginning);
  all_taken_ = reading_->at_end;
  if (all_taken_) return;
  reading_->thread = std::thread([reading = reading_.get()] { reading->run(); });
  std::error_code ignored;
  // What is not a file may come as slowly as somebody types.
  if (!std::filesystem::is_regular_file(path, ignored)) take_all();
}

RequestSource::~RequestSource() = default;

void RequestSource::take(Block& block) {
  requests_.insert(requests_.end(), std::move_iterator(block.requests.begin()),
                   std::move_iterator(block.requests.end()));
  sums_.insert(sums_.end(), block.sums.begin(), block.sums.end());
  if (!first_drawing_) first_drawing_ = block.first_drawing;
}

void RequestSource::take_from_thread(bool wait) {
  Block block;
  std::exception_ptr error;
  {
    std::unique_lock lock(reading_->mutex);
    const auto has_some = [this] { return reading_->ended || !reading_->ready.sums.empty(); };
    reading_->awaited = wait;
    if (wait) reading_->changed.wait(lock, has_some);
    std::swap(block, reading_->ready);
    all_taken_ = reading_->ended;
    error = reading_->error;
  }
  take(block);
  if (error) std::rethrow_exception(error);
}

bool RequestSource::take_more() {
  const std::size_t before = requests_.size();
  while (!all_taken_ && requests_.size() == before) take_from_thread(true);
  return requests_.size() > before;
}

void RequestSource::take_ready() {
  if (!all_taken_) take_from_thread(false);
}

void RequestSource::take_all() {
  while (take_more()) {
  }
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
