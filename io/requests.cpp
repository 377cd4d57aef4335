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
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"
#include "io/model_file.hpp"
#include "io/model_text.hpp"
#include "io/openai_batch.hpp"
#include "io/request_forms.hpp"
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

/// A whole number from 0 on, also one that is written 6.0 or 1e3. Nothing for others, and from 2^53
/// on for those written so, since a double may be another number than the one written.
std::optional<std::uint64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (!value.is_number()) return std::nullopt;
  constexpr double inexact = 9007199254740992.0;  // 2^53
  const auto exact = value.get<double>();
  if (!(exact >= 0 && exact < inexact) || exact != std::floor(exact)) return std::nullopt;
  return static_cast<std::uint64_t>(exact);
}

int integer(const Json& value, const char* key, int low, int high) {
  const auto whole = whole_number(value);
  const bool fits = whole && *whole >= static_cast<std::uint64_t>(low) &&
                    *whole <= static_cast<std::uint64_t>(high);
  require(fits, "\"{}\" is {}, must be an integer from {} to {}", key, shown(value), low, high);
  return static_cast<int>(*whole);
}

double number(const Json& value, const char* key) {
  require(value.is_number(), "\"{}\" is {}, must be a number", key, shown(value));
  return value.get<double>();
}

std::vector<std::int32_t> token_ids(const Json& value, const char* key, int vocab) {
  require(value.is_array(), "\"{}\" is {}, must be a list of token ids", key, shown(value));
  std::vector<std::int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    ids.push_back(integer(id, key, 0, vocab - 1));
  }
  return ids;
}

/// Text stays text here: prompts are encoded many at a time.
void parse_prompt(const Json& json, const RequestLimits& limits, const ModelText& text,
                  Request& request) {
  const bool has_prompt = json.contains("prompt");
  require(has_prompt != json.contains("tokens"),
          "it has {} \"prompt\" {} \"tokens\"; give one of them", has_prompt ? "both" : "neither",
          has_prompt ? "and" : "nor");
  if (json.contains("add_special_tokens")) {
    const Json& add = json["add_special_tokens"];
    require(add.is_boolean(), "\"add_special_tokens\" is {}, must be true or false", shown(add));
    require(has_prompt,
            "\"add_special_tokens\" is for a \"prompt\"; \"tokens\" are taken as they are");
    request.add_special_tokens = add.get<bool>();
  }
  if (!has_prompt) {
    request.tokens = token_ids(json["tokens"], "tokens", limits.vocab);
    return;
  }
  const Json& prompt = json["prompt"];
  require(prompt.is_string(), "\"prompt\" is {}, must be a string", shown(prompt));
  require(text.why_not().empty(), "\"prompt\" needs a tokenizer: {}", text.why_not());
  require(prompt != "", "the prompt is empty; give at least one token");
  request.prompt = prompt.get<std::string>();
}

void parse_sampling(const Json& json, const RequestLimits& limits, Request& request) {
  if (json.contains("max_tokens")) {
    request.max_tokens =
        integer(json["max_tokens"], "max_tokens", 1, std::numeric_limits<int>::max());
  }
  if (json.contains("temperature"))
    request.temperature = number(json["temperature"], "temperature");
  require(request.temperature >= 0 && std::isfinite(request.temperature),
          "\"temperature\" is {}, must be 0 (greedy) or more", request.temperature);
  if (json.contains("top_p")) request.top_p = number(json["top_p"], "top_p");
  require(request.top_p > 0 && request.top_p <= 1, "\"top_p\" is {}, must be above 0 and at most 1",
          request.top_p);
  if (json.contains("seed")) {
    const auto seed = whole_number(json["seed"]);
    require(seed.has_value(),
            "\"seed\" is {}, must be an integer from 0 to 2^64-1, without a point or an "
            "exponent from 2^53 on",
            shown(json["seed"]));
    request.seed = *seed;
    request.own_seed = true;
  }
  if (json.contains("stop_token_ids")) {
    request.stop_token_ids = token_ids(json["stop_token_ids"], "stop_token_ids", limits.vocab);
  }
}

void check_keys(const Json& json) {
  static constexpr std::string_view known[] = {
      "id",    "prompt", "tokens",         "max_tokens",        "temperature",
      "top_p", "seed",   "stop_token_ids", "add_special_tokens"};
  for (const auto& [key, value] : json.items()) {
    require(std::find(std::begin(known), std::end(known), key) != std::end(known),
            "unknown key {}; known are {}", shown(Json(key)), fmt::join(known, ", "));
  }
}

Json parsed(const std::string& line) {
  require_shallow_json(line, "not usable");
  try {
    return Json::parse(line);
  } catch (const Json::parse_error& error) {
    std::string why = several_objects(line);
    if (why.empty()) why = not_utf8(line);
    fail("not valid JSON at byte {}: {}", error.byte, why.empty() ? shown(Json(line)) : why);
  } catch (const Json::out_of_range& error) {
    const std::string_view what = error.what();  // "... number overflow parsing '1e999'"
    fail("the number {} is too large", what.substr(std::min(what.find('\''), what.size())));
  }
}

/// Null stands for "not given" in what many clients write.
void remove_nulls(Json& json) {
  for (auto member = json.begin(); member != json.end();) {
    member = member->is_null() ? json.erase(member) : std::next(member);
  }
}

void require_no_envelope(const Json& json) {
  for (const char* key : {"body", "params", "request", "modelInput"}) {
    require(!json.contains(key) || !json[key].is_object(),
            "it is an envelope, such as OpenAI's batch format has; give \"id\" and, beside it and "
            "not in \"{}\", prompt, max_tokens and the like",
            key);
  }
}

void require_no_list(const Json& json) {
  if (json.contains("id")) return;
  for (const auto& [key, value] : json.items()) {
    const bool holds_requests = value.is_array() && !value.empty() && value[0].is_object() &&
                                (value[0].contains("prompt") || value[0].contains("tokens"));
    require(!holds_requests,
            "it is an object around requests, in {0}; write each of these as a line, with "
            "jq -c '.[{0}][]'",
            shown(Json(key)));
  }
}

/// The line in Atoll's own form. All lines of a file have the form of its first.
Json own_form(Json json, const RequestLimits& limits, std::optional<bool>& is_batch_file,
              Request& request) {
  const bool is_batch = is_batch_line(json);
  if (!is_batch_file) is_batch_file = is_batch;
  if (!*is_batch_file) return json;
  if (json.contains("custom_id") && json["custom_id"].is_string()) {
    request.id = json["custom_id"].get<std::string>();
  }
  require(is_batch,
          "the file's other lines are of OpenAI's batch format; give \"custom_id\" and \"body\"");
  require(!limits.scoring, "scoring takes lines of Atoll's own form, not of OpenAI's batch format");
  return request_in_batch_line(json, request.batch.emplace());
}

/// Fills `request` from a line. Throws Error with the reason; what was read until then stays.
void parse_line(const std::string& line, const RequestLimits& limits, const ModelText& text,
                std::optional<bool>& is_batch_file, Request& request) {
  Json json = parsed(line);
  require(json.is_object(), "{} instead of a JSON object", shown(json));
  remove_nulls(json);
  json = own_form(std::move(json), limits, is_batch_file, request);
  require_no_envelope(json);
  require_no_list(json);
  require(json.contains("id"), "it has no \"id\"; give a string");
  const Json& id = json["id"];
  require(!id.is_number_integer(), "\"id\" is {0}, must be a non-empty string; write \"{0}\"",
          shown(id));
  // Its digits may be others than those written.
  require(!id.is_number(), "\"id\" is a number, must be a non-empty string; write it in quotes");
  require(id.is_string() && !id.get_ref<const std::string&>().empty(),
          "\"id\" is {}, must be a non-empty string", shown(id));
  request.id = id.get<std::string>();
  check_keys(json);
  parse_prompt(json, limits, text, request);
  request.seed = sample_seed(limits.seed, request.id);
  parse_sampling(json, limits, request);
  if (!request.prompt) check_length(request, limits);
}

bool is_blank(const std::string& line) {
  return line.find_first_not_of(" \t\r\n\v\f") == std::string::npos;
}

std::string json_string(const std::string& text) {
  return json_text(Json(text));
}

/// The shortest digits that give the same float back.
std::string shown(float value) {
  return std::isfinite(value) ? fmt::format("{}", value) : std::string("null");
}

std::string list_of(const std::vector<float>& values, bool null_first) {
  std::string text = null_first ? "[null" : "[";
  for (float value : values) {
    if (text.size() > 1) text += ',';
    text += shown(value);
  }
  return text + ']';
}

}  // namespace

std::uint64_t sample_seed(std::uint64_t job_seed, std::string_view id, std::uint64_t sample) {
  const std::string text = fmt::format("{} {} {}", job_seed, sample, id);
  return checksum_of(std::as_bytes(std::span(text)));
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
                                  json_string(request.id), first->second);
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
  if (static_cast<std::int64_t>(requests.size()) < most) impl_->encoder.forget();
  return requests;
}

std::vector<Request> read_requests(const std::string& path, const RequestLimits& limits) {
  RequestReader reader(path, limits);
  return reader.read(std::numeric_limits<std::int64_t>::max(), /*all_cores=*/true);
}

std::string result_line(const Request& request, const Result& result, bool scoring) {
  if (request.batch) return batch_result_line(request, result);
  if (scoring) {
    return fmt::format(R"({{"id":{},"prompt_logprobs":{}}})", json_string(request.id),
                       list_of(result.logprobs, true));
  }
  return fmt::format(R"({{"id":{},"tokens":[{}],"text":{},"logprobs":{},"finish_reason":{}}})",
                     json_string(request.id), fmt::join(result.tokens, ","),
                     result.text ? json_string(*result.text) : "null",
                     list_of(result.logprobs, false), json_string(result.finish_reason));
}

std::string error_line(const Request& request) {
  if (request.batch) return batch_error_line(request);
  const std::string id =
      request.id.empty() ? "" : fmt::format(R"("id":{},)", json_string(request.id));
  return fmt::format(R"({{{}"line":{},"error":{}}})", id, request.line, json_string(request.error));
}

std::string with_weights(std::string line, std::string_view weights) {
  line.insert(line.size() - 1, fmt::format(R"(,"weights":{})", json_string(std::string(weights))));
  return line;
}

std::optional<std::string> error_in(std::string_view line) {
  if (auto error = batch_error_in(line)) return error;
  // Within strings quotes are escaped, so that this is a key.
  if (line.find(",\"error\":\"") == std::string_view::npos) return std::nullopt;
  return Json::parse(line).at("error").get<std::string>();
}

}  // namespace atl::io
