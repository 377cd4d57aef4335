#include "app/run/results.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "app/run/identity.hpp"
#include "io/json_shown.hpp"
#include "io/utf8.hpp"

namespace atl {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* journal_format = "atoll-journal";
constexpr int journal_version = 1;
// Lines of the input are fewer.
constexpr int part_shift = 40;
constexpr std::int64_t line_mask = (std::int64_t{1} << part_shift) - 1;

/// What the journal calls a request: its line, and above that its part.
std::int64_t journal_key(std::int64_t line, std::int64_t part) {
  return line + (part << part_shift);
}

std::string line_of(const FinishedRequest& finished, bool scoring) {
  io::Request request = finished.asked;
  request.error = finished.error;
  std::string line = finished.error.empty() ? io::result_line(request, finished.result, scoring)
                                            : io::error_line(request);
  return finished.weights.empty() ? line : io::with_weights(std::move(line), finished.weights);
}

}  // namespace

void ResultStore::open(const std::string& output) {
  io::TextFile file(output);
  output_ = file.place().path;  // a link's target, whatever it points to in the end
  const bool direct = file.place().direct;
  if (direct) pipe_.emplace(std::move(file));
  journal_ = std::make_unique<io::ResultJournal>(output_, direct);
}

ordered_json ResultStore::recorded() const {
  if (journal_->num_results() == 0) return nullptr;
  const auto header = ordered_json::parse(journal_->header(), nullptr, false);
  return header.is_object() && header.contains("run") ? header.at("run") : nullptr;
}

void ResultStore::check_journal(const IdentityLike& identity, bool resume) const {
  const std::string& path = journal_->path();
  if (journal_->num_results() == 0) return;
  require(
      resume,
      "{} holds {} finished results of an interrupted run; add --resume to keep them, or remove "
      "that file to start anew",
      path, journal_->num_results());
  const auto header = ordered_json::parse(journal_->header(), nullptr, false);
  require(header.is_object() && header.value("format", "") == journal_format &&
              header.value("format_version", 0) == journal_version && header.contains("run"),
          "cannot resume from {}: its header is damaged, or that of another version; remove the "
          "file to start anew",
          path);
  const std::string differs = difference(header.at("run"), identity(header.at("run")));
  require(differs.empty(),
          "cannot resume: {} is of another run: {}; run with what it was started with (options and "
          "program), or remove "
          "the file to start anew",
          path, differs);
}

std::string ResultStore::header() const {
  return io::json_text(ordered_json({{"format", journal_format},
                                     {"format_version", journal_version},
                                     {"run", identity_(nullptr)}}));
}

std::vector<bool> ResultStore::begin(const RequestList& requests, const IdentityLike& identity,
                                     bool resume, Mode mode, const io::ModelText& text,
                                     const std::function<bool(std::int64_t line)>& keeps,
                                     bool whole_lines) {
  requests_ = &requests;
  identity_ = identity;
  mode_ = mode;
  text_ = &text;
  std::vector<bool> finished(requests.size());
  world_.agree([&] {
    if (!root()) return;
    check_journal(identity, resume);
    identified_ = requests.size();
    if (journal_->num_damaged() > 0) {
      fmt::print(stderr, "{}: {} damaged lines are not used; their requests run again\n",
                 journal_->path(), journal_->num_damaged());
    }
    if (!resume || journal_->num_results() == 0) return journal_->start(header());
    if (keeps) journal_->drop([&](std::int64_t key) { return !keeps(key & line_mask); });
    if (whole_lines) drop_parts_of_lines();
    std::int64_t part = 0;
    for (std::size_t i = 0; i < requests.size(); ++i) {
      part = requests[i].later_part == 1 ? part + 1 : 0;
      const auto line = static_cast<std::int64_t>(requests[i].line);
      const std::int64_t key = journal_key(line, part);
      if (!journal_->has(key)) continue;
      finished[i] = true;
      outcomes_.push_back(kept_outcome(i, key));
    }
    resumed_ = std::ssize(outcomes_);
    const bool same_header = journal_->header() == header();
    journal_->resume();
    if (!same_header) journal_->append(io::journal_line(0, header()));  // it had read less
  });
  return finished;
}

/// Of lines of which not all parts are there.
void ResultStore::drop_parts_of_lines() {
  std::unordered_set<std::int64_t> lacking;
  std::int64_t part = 0;
  for (std::size_t i = 0; i < requests_->size(); ++i) {
    const RequestEntry& request = (*requests_)[i];
    part = request.later_part == 1 ? part + 1 : 0;
    const auto line = static_cast<std::int64_t>(request.line);
    const bool alone =
        part == 0 && (i + 1 == requests_->size() || (*requests_)[i + 1].later_part == 0);
    if (!alone && !journal_->has(journal_key(line, part))) lacking.insert(line);
  }
  journal_->drop([&](std::int64_t key) { return lacking.contains(key & line_mask); });
}

void ResultStore::refuse(const std::vector<Refused>& refused) {
  std::string lines;
  for (const Refused& each : refused) {
    lines += io::journal_line(-journal_key(each.line, each.part), each.result);
  }
  journal_->append(lines);
}

/// On the rank that writes the line: rank 0 alone would decode for all.
void ResultStore::add_text(FinishedRequest& finished) const {
  io::Result& result = finished.result;
  const bool has_text = text_->why_not().empty();
  if (mode_ == Mode::generate && finished.error.empty() && has_text) {
    result.text = result.bytes_before_stop ? text_before_stop(result)
                                           : text_->decode(result.tokens, {.continues = true});
  }
  const auto& batch = finished.asked.batch;
  if (!batch || !batch->logprobs) return;
  const auto add = [&](std::int32_t token, std::vector<std::string>& bytes) {
    const bool known = has_text && token >= 0;
    bytes.push_back(known ? text_->bytes_of(token, /*special_tokens=*/true) : "");
  };
  for (const std::int32_t token : result.tokens) add(token, result.token_bytes);
  for (const SampledToken& top : result.tops) add(top.token, result.token_bytes);
  for (const std::int32_t token : result.prompt) add(token, result.prompt_bytes);
  for (const SampledToken& top : result.prompt_tops) add(top.token, result.prompt_bytes);
}

std::string ResultStore::text_before_stop(const io::Result& result) const {
  std::string bytes;
  for (const std::int32_t token : result.tokens) {
    bytes += text_->bytes_of(token, /*special_tokens=*/false);
  }
  return io::mended_utf8(std::string_view(bytes).substr(0, *result.bytes_before_stop));
}

ResultStore::Outcome ResultStore::outcome_of(const FinishedRequest& finished) const {
  Outcome outcome;
  outcome.request = finished.request;
  outcome.scored = finished.error.empty() ? 0 : -1;
  if (outcome.scored < 0) return outcome;
  const RequestTimes& times = finished.times;
  outcome.first_token_s = static_cast<float>(times.first_token);
  const auto tokens = std::ssize(finished.result.tokens);
  if (mode_ == Mode::score) {
    for (const float logprob : finished.result.logprobs) outcome.logprob_sum += logprob;
    outcome.scored = static_cast<std::int32_t>(finished.result.logprobs.size());
  } else if (tokens > 1 && times.first_token >= 0) {
    outcome.per_token_s = static_cast<float>((times.last_token - times.first_token) /
                                             static_cast<double>(tokens - 1));
  }
  return outcome;
}

void ResultStore::take(std::vector<FinishedRequest>& finished) {
  for (FinishedRequest& f : finished) {
    add_text(f);
    const std::string line =
        io::journal_line(journal_key(f.asked.line, f.asked.part), line_of(f, mode_ == Mode::score));
    const Told told{outcome_of(f), static_cast<std::int64_t>(line.size())};
    waiting_.append(reinterpret_cast<const char*>(&told), sizeof(told));
    waiting_ += line;
  }
  finished.clear();
}

void ResultStore::add_lines(std::string_view message, std::string& lines) {
  while (!message.empty()) {
    Told told;
    std::memcpy(&told, message.data(), sizeof(told));
    message.remove_prefix(sizeof(told));
    const auto bytes = static_cast<std::size_t>(told.line_bytes);
    lines += message.substr(0, bytes);
    message.remove_prefix(bytes);
    outcomes_.push_back(told.outcome);
    // A result counts only under a header that speaks of its request.
    if (static_cast<std::size_t>(told.outcome.request) < identified_) continue;
    identified_ = requests_->size();
    lines.insert(0, io::journal_line(0, header()));
  }
}

std::vector<std::int32_t> ResultStore::collect(std::span<const RankLoad> loads) {
  std::vector<std::uint64_t> sizes;
  std::uint64_t all = 0;
  for (const RankLoad& load : loads) all += static_cast<std::uint64_t>(load.result_bytes);
  if (all == 0) return {};
  sizes.reserve(loads.size());
  for (const RankLoad& load : loads) {
    sizes.push_back(static_cast<std::uint64_t>(load.result_bytes));
  }
  const auto messages = world_.gather_sized(waiting_, sizes, 0);
  waiting_.clear();
  std::string lines;
  lines.reserve(all);
  const std::size_t before = outcomes_.size();
  for (const std::string& message : messages) add_lines(message, lines);
  if (root()) journal_->append(lines);
  std::vector<std::int32_t> requests;
  for (std::size_t i = before; i < outcomes_.size(); ++i) requests.push_back(outcomes_[i].request);
  return requests;
}

void ResultStore::sync() {
  journal_->sync();
}

/// Scores of a result from an earlier run, read back from its line, or that it failed. Its times
/// are unknown.
ResultStore::Outcome ResultStore::kept_outcome(std::size_t request, std::int64_t key) const {
  Outcome outcome;
  outcome.request = static_cast<std::int32_t>(request);
  const std::string line = journal_->result(key);
  if (io::error_in(line)) outcome.scored = -1;
  if (mode_ != Mode::score || outcome.scored < 0) return outcome;
  const std::vector<float> logprobs = io::scored_in(line);
  for (const float logprob : logprobs) outcome.logprob_sum += logprob;
  outcome.scored = static_cast<std::int32_t>(logprobs.size());
  return outcome;
}

RequestSummary ResultStore::summary() {
  RequestSummary summary;
  if (!root()) return summary;
  // In a fixed order, since sums depend on it.
  std::ranges::sort(outcomes_, {}, &Outcome::request);
  summary.requests = static_cast<std::int64_t>(requests_->size());
  summary.refused = summary.requests - std::ssize(outcomes_);
  summary.resumed = resumed_;
  double logprob_sum = 0;
  for (const Outcome& outcome : outcomes_) {
    if (outcome.scored < 0) {
      ++summary.failed;
      continue;
    }
    logprob_sum += outcome.logprob_sum;
    summary.scored_tokens += outcome.scored;
    if (outcome.first_token_s >= 0) summary.first_token_s.push_back(outcome.first_token_s);
    if (outcome.per_token_s >= 0) summary.per_token_s.push_back(outcome.per_token_s);
  }
  if (summary.scored_tokens > 0) {
    summary.perplexity = std::exp(-logprob_sum / static_cast<double>(summary.scored_tokens));
  }
  return summary;
}

std::string ResultStore::part_line(std::int64_t key) const {
  for (const std::int64_t each : {key, -key}) {
    if (journal_->has(each)) return journal_->result(each);
  }
  fail("internal: the request of line {} was never finished", key & line_mask);
}

std::string ResultStore::whole_line(std::size_t& at) const {
  const RequestEntry& first = (*requests_)[at];
  const auto line = static_cast<std::int64_t>(first.line);
  std::vector<std::string> parts;
  do {
    parts.push_back(part_line(journal_key(line, std::ssize(parts))));
    ++at;
  } while (at < requests_->size() && (*requests_)[at].later_part == 1);
  const bool joined = parts.size() > 1 || first.continuation == 1;
  return joined ? io::joined_line(first.continuation == 1, parts) : parts.front();
}

void ResultStore::write() {
  journal_->sync();
  std::optional<io::TextFile> file;
  if (!pipe_) file.emplace(output_);
  io::TextFile& output = pipe_ ? *pipe_ : *file;
  if (part_) output.write(part_header(part_()));
  num_lines_ = 0;
  for (std::size_t at = 0; at < requests_->size();) {
    const auto number = static_cast<std::int64_t>((*requests_)[at].line);
    const std::string line = whole_line(at);
    ++num_lines_;
    if (const auto error = io::error_in(line)) {
      if (num_errors_ == 0) first_error_ = fmt::format("line {}: {}", number, *error);
      ++num_errors_;
    }
    output.write(part_ ? io::journal_line(number, line) : line + "\n");
  }
  output.close();
}

void ResultStore::require_served() const {
  if (num_errors_ == 0) return;
  const std::int64_t all = num_lines_;
  if (num_errors_ == all && !part_) {  // of all parts, `atoll join` says it
    throw NothingServed(
        fmt::format("no request could be served ({} of {} failed, the first in {}); mend them and "
                    "run again; {} says why for each",
                    num_errors_, all, first_error_, output_));
  }
  fmt::print(stderr, "{} of {} requests failed, the first in {}; {} says why for each\n",
             num_errors_, all, first_error_, output_);
}

void ResultStore::remove_journal() {
  journal_->remove();
}

}  // namespace atl
