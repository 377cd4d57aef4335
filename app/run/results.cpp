#include "app/run/results.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "app/run/identity.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* journal_format = "atoll-journal";
constexpr int journal_version = 1;
constexpr io::DecodeOptions each_token = {.special_tokens = true, .continues = true};

std::string line_of(const FinishedRequest& finished, bool scoring) {
  io::Request request;
  request.line = finished.line;
  request.id = finished.id;
  request.batch = finished.batch;
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
      if (!journal_->has(requests[i].line) || (keeps && !keeps(requests[i]))) continue;
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
    result.text = text_->decode(result.tokens, {.continues = true});
  }
  if (!finished.batch || !finished.batch->logprobs) return;
  for (const std::int32_t token : result.tokens) {
    result.token_texts.push_back(has_text ? text_->decode({&token, 1}, each_token) : "");
  }
}

void ResultStore::take(std::vector<FinishedRequest>& finished) {
  for (FinishedRequest& f : finished) {
    add_text(f);
    const std::string line = io::journal_line(f.line, line_of(f, mode_ == Mode::score));
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
  const std::string line = journal_->result((*requests_)[request].line);
  outcome.failed = io::error_in(line).has_value();
  if (mode_ != Mode::score || outcome.failed) return outcome;
  const json result = json::parse(line);
  for (const json& logprob : result.at("prompt_logprobs")) {
    if (logprob.is_null()) continue;
    outcome.logprob_sum += logprob.get<float>();
    ++outcome.scored;
  }
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

void ResultStore::write() {
  journal_->sync();
  std::optional<io::TextFile> file;
  if (!pipe_) file.emplace(output_);
  io::TextFile& output = pipe_ ? *pipe_ : *file;
  if (part_) output.write(part_header(part_()));
  for (const io::Request& request : *requests_) {
    const bool finished = journal_->has(request.line);
    require(finished || !request.error.empty(), "internal: request {} (line {}) was never finished",
            request.id, request.line);
    const std::string line = finished ? journal_->result(request.line) : io::error_line(request);
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
  const auto all = static_cast<std::int64_t>(requests_->size());
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
