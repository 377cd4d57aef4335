#include "io/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <iterator>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/line_reader.hpp"
#include "io/model_file.hpp"
#include "io/model_text.hpp"
#include "io/request_forms.hpp"
#include "io/request_line.hpp"
#include "io/request_prompts.hpp"
#include "io/seen_ids.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

// Some work for several threads.
constexpr std::size_t lines_encoded_at_once = 256;

bool is_blank(const std::string& line) {
  return line.find_first_not_of(" \t\r\n\v\f") == std::string::npos;
}

/// The longest sensible line: 12 bytes for each id of a full prompt, or 6 for each escaped byte.
std::size_t longest_line(const RequestLimits& limits) {
  return (1 << 20) + 32 * static_cast<std::size_t>(limits.max_positions);
}

/// A line at a time becomes requests.
struct LineParser {
  LineParser(const std::string& path, const RequestLimits& given)
      : limits(given),
        max_line(longest_line(given)),
        lines(path, max_line),
        by_size(given.vocab),
        text(given.text == nullptr ? by_size : *given.text),
        encoder(limits, text) {
    if (given.format) is_batch_file = given.format == LineFormat::openai;
  }

  /// The next line, in `line`; false at the end.
  bool next() {
    offset = lines.offset();
    return lines.next(line, length);
  }
  /// What `line` says; a prompt that is text stays text.
  Request parsed(std::int64_t number);

  RequestLimits limits;
  std::size_t max_line;
  LineReader lines;
  ModelText by_size;
  const ModelText& text;
  PromptEncoder encoder;
  std::optional<bool> is_batch_file;  // known from the first line on that is JSON
  std::string line;
  std::size_t length = 0;   // of the line, which may be cut
  std::int64_t offset = 0;  // where it begins
};

Request LineParser::parsed(std::int64_t number) {
  Request request;
  request.line = number;
  request.offset = offset;
  try {
    if (length > max_line) {
      const std::string why = several_objects(line);
      fail("the line has {} bytes, must have at most {}{}{}", length, max_line,
           why.empty() ? "" : "; ", why);
    }
    parse_line(line, limits, text, is_batch_file, request);
  } catch (const Error& error) {
    request.error = error.what();
  }
  return request;
}

void remove_mark(std::string& line, std::int64_t offset) {
  if (offset == 0 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
}

}  // namespace

std::uint64_t sample_seed(std::uint64_t job_seed, std::string_view id, std::uint64_t sample) {
  const std::string text = fmt::format("{} {} {}", job_seed, sample, id);
  return checksum_of(std::as_bytes(std::span(text)));
}

std::string name_of(const Request& request) {
  return request.in_parts() ? fmt::format("{}#{}", request.id, request.part) : request.id;
}

struct RequestReader::Impl : LineParser {
  using LineParser::LineParser;

  void read_beginning(const std::string& path);
  /// The next line that is not blank, in `line`; false at the end.
  bool next_line();
  /// What it says, with what is wrong about its id.
  Request parsed_line();
  std::string id_of_broken() const;
  /// The next request, not yet encoded; false at the end.
  bool next(Request& request);
  /// Adds the next `count` lines to `encoded`, fewer at the end of the file.
  void encode_next(std::size_t count, bool all_cores);
  /// The next line, not yet in parts; nothing at the end. Of those that are encoded at once, so
  /// that threads share them, `most` are wanted.
  std::optional<Request> next_encoded(std::size_t most, bool all_cores);

  SeenIds ids;
  std::deque<Request> beginning;
  std::deque<Request> encoded;
  bool all_encoded = false;
  bool at_end = false;
  std::string problem;      // of the file as a whole
  std::int64_t number = 0;  // the line's
};

bool RequestReader::Impl::next_line() {
  while (LineParser::next()) {
    ++number;
    remove_mark(line, offset);
    if (length > max_line || !is_blank(line)) return true;
  }
  return false;
}

/// Under the key of the file's form, or of the other one, whose lines may stand among them.
std::string RequestReader::Impl::id_of_broken() const {
  const bool batch = is_batch_file.value_or(false);
  std::string id = id_in(line, batch ? "custom_id" : "id");
  return id.empty() ? id_in(line, batch ? "id" : "custom_id") : id;
}

Request RequestReader::Impl::parsed_line() {
  Request request = parsed(number);
  if (!request.id.empty()) {
    if (const std::int64_t first = ids.line_of(request.id, number)) {
      request.error = fmt::format("\"{}\" {} is that of line {} already; make it unique",
                                  said_as(request, "id"), json_text(Json(request.id)), first);
    }
  } else {
    request.id = id_of_broken();  // for its result; a broken line takes no id from a whole one
  }
  if (is_batch_file.value_or(false) && !request.batch) request.batch.emplace();
  return request;
}

/// Where the lines of the beginning are together something else than requests, none of the file is
/// served: those that can be read are not all that were meant. The first line's error says what the
/// file may be.
void RequestReader::Impl::read_beginning(const std::string& path) {
  if (std::string what = problem_of_file(lines.start()); !what.empty()) {
    Request all;
    all.line = 1;
    all.error = std::move(what);
    beginning.push_back(std::move(all));
    return;
  }
  constexpr std::size_t enough_bytes = std::size_t{16} << 20;
  FileForm form;
  std::string advice;
  std::size_t bytes = 0;
  while (beginning.size() < judged_requests && bytes < enough_bytes && next_line()) {
    bytes += line.size();
    form.add(line);
    beginning.push_back(parsed_line());
    if (beginning.size() == 1 && !beginning[0].error.empty()) advice = advice_for_file(line);
  }
  require(!beginning.empty(),
          "cannot read {}: it holds no request; give one JSON object a line, such as "
          "{{\"id\": \"a\", \"prompt\": \"Hello\"}}",
          path);
  if (is_batch_file.value_or(false)) {
    for (Request& request : beginning) {
      if (!request.batch) request.batch.emplace();
    }
  }
  problem = form.problem();
  std::string& first = beginning.front().error;
  const std::string& word = problem.empty() ? advice : problem;
  if (!first.empty() && !word.empty()) first += "; " + word;
}

RequestReader::RequestReader(const std::string& path, const RequestLimits& limits)
    : impl_(std::make_unique<Impl>(path, limits)) {
  impl_->read_beginning(path);
}

RequestReader::~RequestReader() = default;

std::int64_t RequestReader::beginning_left() const {
  return static_cast<std::int64_t>(impl_->beginning.size());
}

bool RequestReader::Impl::next(Request& request) {
  if (!beginning.empty()) {
    request = std::move(beginning.front());
    beginning.pop_front();
  } else if (number > 0 && next_line()) {
    request = parsed_line();
  } else {
    return false;
  }
  if (request.error.empty()) request.error = problem;
  return true;
}

void RequestReader::Impl::encode_next(std::size_t count, bool all_cores) {
  std::vector<Request> read;
  Request request;
  while (read.size() < count && next(request)) read.push_back(std::move(request));
  encoder.encode(read, all_cores);
  all_encoded = read.size() < count;
  if (all_encoded) encoder.forget();
  encoded.assign(std::move_iterator(read.begin()), std::move_iterator(read.end()));
}

std::optional<Request> RequestReader::Impl::next_encoded(std::size_t most, bool all_cores) {
  if (encoded.empty() && !all_encoded) {
    encode_next(std::max({most, beginning.size(), lines_encoded_at_once}), all_cores);
  }
  if (encoded.empty()) return std::nullopt;
  std::optional<Request> first = std::move(encoded.front());
  encoded.pop_front();
  return first;
}

/// Parts are made of what is read now alone: a line may have thousands of them.
std::vector<Request> RequestReader::read(std::int64_t most, bool all_cores) {
  std::vector<Request> lines;
  impl_->at_end = false;
  while (std::ssize(lines) < most && !impl_->at_end) {
    auto line = impl_->next_encoded(static_cast<std::size_t>(most) - lines.size(), all_cores);
    impl_->at_end = !line;
    if (line) lines.push_back(std::move(*line));
  }
  return in_parts(std::move(lines), impl_->limits);
}

bool RequestReader::at_end() const {
  return impl_->at_end;
}

std::optional<LineFormat> RequestReader::format() const {
  if (!impl_->is_batch_file) return std::nullopt;
  return *impl_->is_batch_file ? LineFormat::openai : LineFormat::atoll;
}

struct LineFetcher::Impl : LineParser {
  using LineParser::LineParser;
};

LineFetcher::LineFetcher(const std::string& path, const RequestLimits& limits)
    : impl_(std::make_unique<Impl>(path, limits)) {}

LineFetcher::~LineFetcher() = default;

std::vector<Request> LineFetcher::fetch(std::int64_t offset, std::int64_t line) {
  impl_->lines.seek(offset);
  require(impl_->next(), "the file has become shorter");
  remove_mark(impl_->line, offset);
  std::vector<Request> requests;
  requests.push_back(impl_->parsed(line));
  impl_->encoder.encode(requests, /*all_cores=*/false);
  return in_parts(std::move(requests), impl_->limits);
}

std::vector<Request> read_requests(const std::string& path, const RequestLimits& limits) {
  RequestReader reader(path, limits);
  return reader.read(std::numeric_limits<std::int64_t>::max(), /*all_cores=*/true);
}

}  // namespace atl::io
