#include "app/run/results.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
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

/// What the journal calls a request: its line, and above that its part.
std::int64_t journal_key(const io::Request& request) {
  return request.line + (std::int64_t{request.part} << part_shift);
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

std::vector<bool> ResultStore::begin(const std::vector<io::Request>& requests,
                                     const IdentityLike& identity, bool resume, Mode mode,
                                     const io::ModelText& text,
                                     const std::function<bool(const io::Request&)>& keeps) {
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
    for (std::size_t i = 0; i < requests.size(); ++i) {
      if (!journal_->has(journal_key(requests[i])) || (keeps && !keeps(requests[i]))) continue;
      finished[i] = true;
      resumed_.push_back(i);
    }
    const bool same_header = journal_->header() == header();
    journal_->resume();
    if (!same_header) journal_->append(io::journal_line(0, header()));  // it had read less
  });
  return finished;
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
  const auto add = [&](std::int32_t token) {
    const bool known = has_text && token >= 0;
    result.token_bytes.push_back(known ? text_->bytes_of(token, /*special_tokens=*/true) : "");
  };
  for (const std::int32_t token : result.tokens) add(token);
  for (const SampledToken& top : result.tops) add(top.token);
}

std::string ResultStore::text_before_stop(const io::Result& result) const {
  std::string bytes;
  for (const std::int32_t token : result.tokens) {
    bytes += text_->bytes_of(token, /*special_tokens=*/false);
  }
  return io::mended_utf8(std::string_view(bytes).substr(0, *result.bytes_before_stop));
}

void ResultStore::take(std::vector<FinishedRequest>& finished) {
  for (FinishedRequest& f : finished) {
    add_text(f);
    const std::string line =
        io::journal_line(journal_key(f.asked), line_of(f, mode_ == Mode::score));
    Outcome outcome;
    outcome.request = f.request;
    outcome.failed = !f.error.empty();
    outcome.line_bytes = static_cast<std::int64_t>(line.size());
    outcome.tokens = static_cast<std::int32_t>(f.result.tokens.size());
    outcome.times = f.times;
    if (mode_ == Mode::score && !outcome.failed) {
      for (const float logprob : f.result.logprobs) outcome.logprob_sum += logprob;
      outcome.scored = static_cast<std::int64_t>(f.result.logprobs.size());
    }
    waiting_.append(reinterpret_cast<const char*>(&outcome), sizeof(outcome));
    waiting_ += line;
  }
  finished.clear();
}

void ResultStore::add_lines(std::string_view message, std::string& lines) {
  while (!message.empty()) {
    Outcome outcome;
    std::memcpy(&outcome, message.data(), sizeof(outcome));
    message.remove_prefix(sizeof(outcome));
    const auto bytes = static_cast<std::size_t>(outcome.line_bytes);
    lines += message.substr(0, bytes);
    message.remove_prefix(bytes);
    outcomes_.push_back(outcome);
    // A result counts only under a header that speaks of its request.
    if (static_cast<std::size_t>(outcome.request) < identified_) continue;
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
ResultStore::Outcome ResultStore::kept_outcome(std::size_t request) const {
  Outcome outcome;
  outcome.request = static_cast<std::int32_t>(request);
  outcome.times.first_token = -1;
  const std::string line = journal_->result(journal_key((*requests_)[request]));
  outcome.failed = io::error_in(line).has_value();
  if (mode_ != Mode::score || outcome.failed) return outcome;
  const std::vector<float> logprobs = io::scored_in(line);
  for (const float logprob : logprobs) outcome.logprob_sum += logprob;
  outcome.scored = std::ssize(logprobs);
  return outcome;
}

RequestSummary ResultStore::summary() const {
  RequestSummary summary;
  if (!root()) return summary;
  std::map<std::int32_t, Outcome> by_request;  // in a fixed order, since sums depend on it
  for (const Outcome& outcome : outcomes_) by_request[outcome.request] = outcome;
  for (const std::size_t request : resumed_) {
    by_request[static_cast<std::int32_t>(request)] = kept_outcome(request);
  }
  summary.requests = static_cast<std::int64_t>(requests_->size());
  summary.refused = summary.requests - static_cast<std::int64_t>(by_request.size());
  summary.resumed = static_cast<std::int64_t>(resumed_.size());
  double logprob_sum = 0;
  for (const auto& [request, outcome] : by_request) {
    if (outcome.failed) {
      ++summary.failed;
      continue;
    }
    logprob_sum += outcome.logprob_sum;
    summary.scored_tokens += outcome.scored;
    if (outcome.times.first_token < 0) continue;  // its first token came in an earlier run
    summary.first_token_s.push_back(outcome.times.first_token);
    if (mode_ == Mode::generate && outcome.tokens > 1) {
      summary.per_token_s.push_back((outcome.times.last_token - outcome.times.first_token) /
                                    (outcome.tokens - 1));
    }
  }
  if (summary.scored_tokens > 0) {
    summary.perplexity = std::exp(-logprob_sum / static_cast<double>(summary.scored_tokens));
  }
  return summary;
}

std::string ResultStore::part_line(const io::Request& request) const {
  const bool finished = journal_->has(journal_key(request));
  require(finished || !request.error.empty(), "internal: request {} (line {}) was never finished",
          request.id, request.line);
  return finished ? journal_->result(journal_key(request)) : io::error_line(request);
}

std::string ResultStore::whole_line(std::size_t& at) const {
  const io::Request& first = (*requests_)[at];
  if (!first.in_parts()) return part_line((*requests_)[at++]);
  std::vector<std::string> parts;
  const std::size_t end = at + static_cast<std::size_t>(first.parts);
  while (at < end) parts.push_back(part_line((*requests_)[at++]));
  return io::joined_line(first, parts);
}

void ResultStore::write() {
  journal_->sync();
  std::optional<io::TextFile> file;
  if (!pipe_) file.emplace(output_);
  io::TextFile& output = pipe_ ? *pipe_ : *file;
  if (part_) output.write(part_header(part_()));
  num_lines_ = 0;
  for (std::size_t at = 0; at < requests_->size();) {
    const io::Request& request = (*requests_)[at];
    const std::string line = whole_line(at);
    ++num_lines_;
    if (const auto error = io::error_in(line)) {
      if (num_errors_ == 0) first_error_ = fmt::format("line {}: {}", request.line, *error);
      ++num_errors_;
    }
    output.write(part_ ? io::journal_line(request.line, line) : line + "\n");
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
