#include "app/run/results.hpp"

#include <fmt/format.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "app/run/identity.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* journal_format = "atoll-journal";
constexpr int journal_version = 1;
constexpr io::DecodeOptions each_token = {.special_tokens = true, .continues = true};

std::string line_of(const io::Request& request, const FinishedRequest& finished, bool scoring) {
  if (finished.error.empty()) return io::result_line(request, finished.result, scoring);
  io::Request failed;
  failed.line = request.line;
  failed.id = request.id;
  failed.batch = request.batch;
  failed.error = finished.error;
  return io::error_line(failed);
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

void ResultStore::check_journal(const ordered_json& identity, bool resume) const {
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
  const std::string differs = difference(header.at("run"), identity);
  require(differs.empty(),
          "cannot resume: {} is of another run: {}; run with what it was started with (options and "
          "program), or remove "
          "the file to start anew",
          path, differs);
}

std::vector<bool> ResultStore::begin(const std::vector<io::Request>& requests,
                                     const ordered_json& identity, bool resume, Mode mode,
                                     const io::ModelText& text) {
  requests_ = &requests;
  mode_ = mode;
  text_ = &text;
  std::string flags(requests.size(), '0');
  world_.agree([&] {
    if (!root()) return;
    check_journal(identity, resume);
    if (journal_->num_damaged() > 0) {
      fmt::print(stderr, "{}: {} damaged lines are not used; their requests run again\n",
                 journal_->path(), journal_->num_damaged());
    }
    if (resume && journal_->num_results() > 0) {
      for (std::size_t i = 0; i < requests.size(); ++i) {
        if (!journal_->has(requests[i].line)) continue;
        flags[i] = '1';
        resumed_.push_back(i);
      }
      journal_->resume();
    } else {
      journal_->start(io::json_text(ordered_json(
          {{"format", journal_format}, {"format_version", journal_version}, {"run", identity}})));
    }
  });
  flags = world_.broadcast(flags, 0);
  std::vector<bool> finished;
  for (const char flag : flags) finished.push_back(flag == '1');
  return finished;
}

void ResultStore::take(std::vector<FinishedRequest>& finished) {
  for (FinishedRequest& f : finished) {
    const io::Request& request = (*requests_)[static_cast<std::size_t>(f.request)];
    if (mode_ == Mode::generate && f.error.empty() && text_->why_not().empty()) {
      f.result.text = text_->decode(f.result.tokens, {.continues = true});
    }
    if (request.batch && request.batch->logprobs) {
      for (const std::int32_t token : f.result.tokens) {
        f.result.token_texts.push_back(
            text_->why_not().empty() ? text_->decode({&token, 1}, each_token) : "");
      }
    }
    Outcome outcome;
    outcome.request = f.request;
    outcome.failed = !f.error.empty();
    waiting_ += io::journal_line(request.line, line_of(request, f, mode_ == Mode::score));
    outcome.tokens = static_cast<std::int32_t>(f.result.tokens.size());
    outcome.times = f.times;
    if (mode_ == Mode::score && !outcome.failed) {
      for (const float logprob : f.result.logprobs) outcome.logprob_sum += logprob;
      outcome.scored = static_cast<std::int64_t>(f.result.logprobs.size());
    }
    outcomes_.push_back(outcome);
  }
  finished.clear();
}

void ResultStore::collect(std::span<const RankLoad> loads) {
  std::vector<std::uint64_t> sizes;
  std::uint64_t all = 0;
  for (const RankLoad& load : loads) all += static_cast<std::uint64_t>(load.result_bytes);
  if (all == 0) return;
  sizes.reserve(loads.size());
  for (const RankLoad& load : loads) {
    sizes.push_back(static_cast<std::uint64_t>(load.result_bytes));
  }
  const auto texts = world_.gather_sized(waiting_, sizes, 0);
  waiting_.clear();
  std::string lines;
  lines.reserve(all);
  for (const std::string& text : texts) lines += text;
  if (root()) journal_->append(lines);
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
  std::map<std::int32_t, Outcome> by_request;  // in a fixed order, since sums depend on it
  for (const auto& of_rank : world_.gather_vectors(std::span(outcomes_), 0)) {
    for (const Outcome& outcome : of_rank) by_request[outcome.request] = outcome;
  }
  if (!root()) return summary;
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
  if (part_) output.write(part_header(*part_));
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
