#pragma once
// Requests (JSONL in) and results (JSONL out).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace atl::io {

class ModelText;

/// What a line of OpenAI's batch format says that its response needs.
struct BatchLine {
  std::string model;      ///< said back
  bool logprobs = false;  ///< the response has them
};

/// One line of the requests file.
struct Request {
  std::int64_t line = 0;  ///< 1-based line number in the input file
  std::string id;
  std::vector<std::int32_t> tokens;   ///< the prompt
  std::optional<std::string> prompt;  ///< as text, until it is encoded
  bool add_special_tokens = true;     ///< with a text, those of the tokenizer's template
  std::optional<int> max_tokens;
  double temperature = 0.0;  ///< 0 is greedy
  double top_p = 1.0;
  std::uint64_t seed = 0;  ///< its own, or sample_seed()
  bool own_seed = false;   ///< the line names a seed
  std::vector<std::int32_t> stop_token_ids;
  std::optional<BatchLine> batch;  ///< set: line and result are of OpenAI's batch format
  std::string error;               ///< set: this line is refused with this reason
};

/// What a prompt may be, for the checks of a single line, and what holds where a line says nothing.
struct RequestLimits {
  int vocab = 0;
  int max_positions = 0;
  bool index_beyond = false;        ///< attention would select keys by an index from there on
  int default_max_tokens = 0;       ///< for requests that name none
  bool scoring = false;             ///< no tokens are generated
  std::uint64_t seed = 0;           ///< of the job, for requests that name none
  const ModelText* text = nullptr;  ///< null: ids are bytes where there are 256
};

/// The seed of a request that names none: the XXH3 (64 bits) of "SEED SAMPLE ID", numbers in
/// decimal. It depends on nothing else, so that a part of a file draws as the whole file does.
/// `sample` counts the samples of one request.
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
  /// The next `most` requests, fewer at the end of the file, with their prompts encoded, on all
  /// cores of this process or on the caller's thread alone. Throws Error when it cannot be read.
  std::vector<Request> read(std::int64_t most, bool all_cores);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// All requests of a file.
std::vector<Request> read_requests(const std::string& path, const RequestLimits& limits);

/// The outcome of one request.
struct Result {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;           ///< of `tokens`; in scoring of prompt tokens 1..n-1
  std::vector<std::string> token_texts;  ///< of each token, for a batch line with log-probabilities
  std::int64_t prompt_tokens = 0;        ///< of the request
  std::string finish_reason;             ///< "length" or "stop"
  std::optional<std::string> text;       ///< of `tokens`, where the model has text
};

/// One line of results.jsonl, without the newline. `scoring` writes prompt_logprobs (null first).
std::string result_line(const Request& request, const Result& result, bool scoring);
/// The line for a refused request: id (if it had one), line, error.
std::string error_line(const Request& request);
/// A line of results that names the weights that made it, as its last key.
std::string with_weights(std::string line, std::string_view weights);
/// The reason in a line that error_line() made; nothing for other lines of results.
std::optional<std::string> error_in(std::string_view line);

}  // namespace atl::io
