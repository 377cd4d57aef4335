#pragma once
// Requests (JSONL in) and results (JSONL out).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "compute/sampling.hpp"
#include "io/line_format.hpp"

namespace atl::io {

class ModelText;

/// What a line of OpenAI's batch format says that its response needs.
struct BatchLine {
  std::string model;                    ///< said back
  bool logprobs = false;                ///< the response has them
  bool chat = false;                    ///< it is that of a chat, else that of a completion
  bool echo = false;                    ///< the prompt's text stands before that of each choice
  std::string prompt;                   ///< that text, for echo
  bool says_completion_tokens = false;  ///< "max_completion_tokens" where others say "max_tokens"

  bool operator==(const BatchLine&) const = default;
};

/// One of several prompts, or what is scored after a prompt: a text, until it is encoded, or
/// tokens.
struct TextOrTokens {
  std::optional<std::string> text;
  std::vector<std::int32_t> tokens;
  std::string echo;  ///< of a prompt that is said back: its text
};

/// One line of the requests file, or one of several parts that it asks for: samples of a prompt or
/// of each of several, or continuations of one. Parts of a line follow one another, alike but for
/// `part` and what that decides.
struct Request {
  std::int64_t line = 0;    ///< 1-based line number in the input file
  std::int64_t offset = 0;  ///< the byte of the input at which that line begins
  std::string id;
  std::vector<std::int32_t> tokens;   ///< the prompt
  std::optional<std::string> prompt;  ///< as text, until it is encoded
  bool add_special_tokens = true;     ///< with a text, those of the tokenizer's template
  std::optional<int> max_tokens;
  double temperature = 0.0;  ///< 0 is greedy
  double top_p = 1.0;
  std::uint64_t seed = 0;  ///< its own, or sample_seed()
  bool own_seed = false;   ///< the line names a seed
  int top_k = 0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::vector<std::pair<std::int32_t, float>> logit_bias;  ///< by token, rising
  int top_logprobs = 0;  ///< most probable tokens that are named beside each of the result
  int min_tokens = 0;    ///< no stop token or text ends the result before it has so many
  std::vector<std::int32_t> stop_token_ids;
  std::vector<std::string> stop;  ///< texts that end the result
  int parts = 1;
  int part = 0;                  ///< the number of this one, from 0
  int samples = 1;               ///< of these, of one prompt; those of another prompt follow
  std::int64_t scored_from = 0;  ///< where a continuation begins among `tokens`; 0: there is none
  std::vector<TextOrTokens> continuations;  ///< until the parts are made
  std::vector<TextOrTokens> prompts;        ///< the same, where there are several
  std::optional<BatchLine> batch;           ///< set: line and result are of OpenAI's batch format
  std::string error;                        ///< set: this line is refused with this reason

  bool is_continuation() const { return scored_from > 0; }
  /// Whether its result has the log-probabilities of its prompt's tokens beside others.
  bool scores_prompt() const { return batch && batch->echo && batch->logprobs; }
  /// Whether the result of its line holds those of parts, be it of one.
  bool in_parts() const { return parts > 1 || is_continuation(); }
  SamplingOptions sampling() const {
    return {temperature,      top_p, seed, top_k, min_p, repetition_penalty, presence_penalty,
            frequency_penalty};
  }
};

/// What a request is called among others, in files that hold something of each: its id, and the
/// number of its part where it is one of several.
std::string name_of(const Request& request);

/// What a prompt may be, for the checks of a single line, and what holds where a line says nothing.
struct RequestLimits {
  int vocab = 0;
  int max_positions = 0;
  bool index_beyond = false;         ///< attention would select keys by an index from there on
  int default_max_tokens = 0;        ///< for requests that name none
  bool scoring = false;              ///< no tokens are generated
  std::uint64_t seed = 0;            ///< of the job, for requests that name none
  std::optional<LineFormat> format;  ///< none: the first line's
  const ModelText* text = nullptr;   ///< null: ids are bytes where there are 256
};

/// The seed of a request that names none: the XXH3 (64 bits) of "SEED SAMPLE ID", numbers in
/// decimal. It depends on nothing else, so that a part of a file draws as the whole file does.
/// `sample` counts the samples of one request. Where the request names a seed, sample i has that
/// number plus i (modulo 2^64).
std::uint64_t sample_seed(std::uint64_t job_seed, std::string_view id, std::uint64_t sample = 0);

/// Requests that a file is judged by: whether its lines are requests, or together something else.
inline constexpr std::size_t judged_requests = 10000;

/// Reads requests one after the other. A bad line becomes a Request with `error`, and with its id
/// where that can be read. Blank lines are skipped. A file that holds no lines of text (compressed,
/// UTF-16) becomes one such Request.
class RequestReader {
 public:
  /// Reads the beginning, of at most judged_requests. Throws Error when the file cannot be read or
  /// holds no request at all.
  RequestReader(const std::string& path, const RequestLimits& limits);
  ~RequestReader();
  RequestReader(const RequestReader&) = delete;
  RequestReader& operator=(const RequestReader&) = delete;

  /// How many of the requests that the file was judged by are still to come.
  std::int64_t beginning_left() const;
  /// The requests of the next `most` lines, fewer at the end of the file, with their prompts
  /// encoded, on all cores of this process or on the caller's thread alone. Throws Error when it
  /// cannot be read.
  std::vector<Request> read(std::int64_t most, bool all_cores);
  /// Whether read() has come to the end of the file.
  bool at_end() const;
  /// What the file's lines are, as far as any could be read.
  std::optional<LineFormat> format() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads single lines again of which a RequestReader made requests without an error.
class LineFetcher {
 public:
  /// `limits` with the file's format. Throws Error when the file cannot be read.
  LineFetcher(const std::string& path, const RequestLimits& limits);
  ~LineFetcher();
  LineFetcher(const LineFetcher&) = delete;
  LineFetcher& operator=(const LineFetcher&) = delete;

  /// The requests of the line that begins at `offset`, cheapest in the order of the file. Where the
  /// file is not the same any more, they may be any, with an error or without, or Error is thrown.
  std::vector<Request> fetch(std::int64_t offset, std::int64_t line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// All requests of a file.
std::vector<Request> read_requests(const std::string& path, const RequestLimits& limits);

/// The outcome of one request.
struct Result {
  std::vector<std::int32_t> tokens;
  std::vector<float>
      logprobs;  ///< of `tokens`; in scoring of all but the first, or a continuation's
  std::vector<SampledToken> tops;  ///< [tokens, top_logprobs], by falling probability
  /// Of each token, then of each of `tops`: for a batch line with log-probabilities, the bytes that
  /// it gives, which need not be UTF-8.
  std::vector<std::string> token_bytes;
  /// Where the request scores its prompt, that and the same of it: log-probabilities of all tokens
  /// but the first, and the most probable ones in place of each of these.
  std::vector<std::int32_t> prompt;
  std::vector<float> prompt_logprobs;
  std::vector<SampledToken> prompt_tops;
  std::vector<std::string> prompt_bytes;
  std::int64_t prompt_tokens = 0;   ///< of the request
  bool greedy = true;               ///< in scoring: each scored token is the most probable one
  std::string finish_reason;        ///< "length" or "stop"
  std::optional<std::string> text;  ///< of `tokens`, where the model has text
  /// Where a text ended the result: the bytes of the tokens before it, which alone become `text`.
  std::optional<std::size_t> bytes_before_stop;
};

/// One line of results.jsonl, without the newline. `scoring` writes prompt_logprobs (null first).
/// Of a request that is a part, the same of that part, for joined_line().
std::string result_line(const Request& request, const Result& result, bool scoring);
/// The line of results of a request in parts, from those of all parts in order: the first error
/// among them, or all. `continuations`: that is what they are, not samples.
std::string joined_line(bool continuations, std::span<const std::string> lines);
/// What a line of results that is no error says of log-probabilities in scoring, in their order.
std::vector<float> scored_in(std::string_view line);
/// The line for a refused request: id (if it had one), line, error.
std::string error_line(const Request& request);
/// A line of results that names the weights that made it, as its last key.
std::string with_weights(std::string line, std::string_view weights);
/// The reason in a line that error_line() made; nothing for other lines of results.
std::optional<std::string> error_in(std::string_view line);

}  // namespace atl::io
