#include "io/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <unordered_map>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/model_file.hpp"
#include "io/model_text.hpp"
#include "io/request_forms.hpp"
#include "io/request_line.hpp"
#include "io/request_prompts.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

/// Reads lines of bounded length; the rest of a longer line is skipped.
class LineReader {
 public:
  LineReader(const std::string& path, std::size_t max_bytes)
      : path_(path), max_bytes_(max_bytes), buffer_(1 << 16) {
    std::error_code ignored;
    file_.reset(std::fopen(path.c_str(), "rb"));
    if (!file_) {
      const int reason = errno;
      fail("cannot read {}: {} (working directory {}); check --input", path, std::strerror(reason),
           std::filesystem::current_path(ignored).string());
    }
    require(!std::filesystem::is_directory(path, ignored),
            "cannot read {}: it is a folder; give a file of requests, one JSON object a line",
            path);
  }

  /// The file's first bytes, before any line is read; a few at least, where it has them.
  std::string_view start() {
    if (end_ == 0) refill();
    return {buffer_.data(), end_};
  }

  /// The next line without its end, and how long it was; false at the end of the file.
  bool next(std::string& line, std::size_t& length) {
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

 private:
  bool refill() {
    begin_ = 0;
    end_ = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
    if (std::ferror(file_.get()) != 0) fail("cannot read {}: {}", path_, std::strerror(errno));
    return end_ > 0;
  }

  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::size_t max_bytes_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
};

bool is_blank(const std::string& line) {
  return line.find_first_not_of(" \t\r\n\v\f") == std::string::npos;
}

}  // namespace

std::uint64_t sample_seed(std::uint64_t job_seed, std::string_view id, std::uint64_t sample) {
  const std::string text = fmt::format("{} {} {}", job_seed, sample, id);
  return checksum_of(std::as_bytes(std::span(text)));
}

std::string name_of(const Request& request) {
  return request.in_parts() ? fmt::format("{}#{}", request.id, request.part) : request.id;
}

struct RequestReader::Impl {
  Impl(const std::string& path, const RequestLimits& given)
      : limits(given),
        // The longest sensible line: 12 bytes for each id of a full prompt, or 6 for each escaped
        // byte.
        max_line((1 << 20) + 32 * static_cast<std::size_t>(given.max_positions)),
        lines(path, max_line),
        by_size(given.vocab),
        text(given.text == nullptr ? by_size : *given.text),
        encoder(limits, text) {}

  void read_beginning(const std::string& path);
  /// The next line that is not blank, in `line`; false at the end.
  bool next_line();
  /// What `line` says; a prompt that is text stays text.
  Request parsed_line();
  /// The next request, not yet encoded; false at the end.
  bool next(Request& request);

  RequestLimits limits;
  std::size_t max_line;
  LineReader lines;
  ModelText by_size;
  const ModelText& text;
  PromptEncoder encoder;
  std::optional<bool> is_batch_file;  // known from the first line on that is JSON
  std::unordered_map<std::string, std::int64_t> line_of;  // ids so far
  std::deque<Request> beginning;
  bool at_end = false;
  std::string problem;  // of the file as a whole
  std::string line;
  std::size_t length = 0;   // of the line, which may be cut
  std::int64_t number = 0;  // the line's
};

bool RequestReader::Impl::next_line() {
  while (lines.next(line, length)) {
    ++number;
    if (number == 1 && line.starts_with("\xef\xbb\xbf")) line.erase(0, 3);
    if (length > max_line || !is_blank(line)) return true;
  }
  return false;
}

Request RequestReader::Impl::parsed_line() {
  Request request;
  request.line = number;
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
  if (!request.id.empty()) {
    const auto [first, is_new] = line_of.emplace(request.id, number);
    if (!is_new) {
      request.error = fmt::format("\"id\" {} is that of line {} already; make it unique",
                                  json_text(Json(request.id)), first->second);
    }
  } else {
    request.id = id_in(line);  // for its result; a broken line takes no id from a whole one
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

std::vector<Request> RequestReader::read(std::int64_t most, bool all_cores) {
  std::vector<Request> requests;
  Request request;
  while (static_cast<std::int64_t>(requests.size()) < most && impl_->next(request)) {
    requests.push_back(std::move(request));
  }
  impl_->encoder.encode(requests, all_cores);
  impl_->at_end = static_cast<std::int64_t>(requests.size()) < most;
  if (impl_->at_end) impl_->encoder.forget();
  return in_parts(std::move(requests), impl_->limits);
}

bool RequestReader::at_end() const {
  return impl_->at_end;
}

std::vector<Request> read_requests(const std::string& path, const RequestLimits& limits) {
  RequestReader reader(path, limits);
  return reader.read(std::numeric_limits<std::int64_t>::max(), /*all_cores=*/true);
}

}  // namespace atl::io
