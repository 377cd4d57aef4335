#pragma once
// Requests (JSONL in) and results (JSONL out).

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace atl::io {

/// One line of the requests file.
struct Request {
  std::int64_t line = 0;  ///< 1-based line number in the input file
  std::string id;
  std::vector<std::int32_t> tokens;  ///< the prompt
  std::optional<int> max_tokens;
  double temperature = 0.0;  ///< 0 is greedy
  double top_p = 1.0;
  std::uint64_t seed = 0;
  std::vector<std::int32_t> stop_token_ids;
  std::string error;  ///< set: this line is refused with this reason
};

/// What a prompt may be, for the checks of a single line.
struct RequestLimits {
  int vocab = 0;
  int max_positions = 0;
  int default_max_tokens = 0;  ///< for requests that name none
  bool scoring = false;        ///< no tokens are generated
};

/// Reads all requests; a bad line becomes a Request with `error`, and with its id where that can be
/// read. Blank lines are skipped. A file that holds no lines of text (compressed, UTF-16) becomes
/// one such Request. Throws Error when the file cannot be read or holds no request at all.
std::vector<Request> read_requests(const std::string& path, const RequestLimits& limits);

/// The outcome of one request.
struct Result {
  std::vector<std::int32_t> tokens;
  std::vector<float> logprobs;  ///< of `tokens`; in scoring of prompt tokens 1..n-1
  std::string finish_reason;    ///< "length" or "stop"
  bool has_text = true;         ///< false where ids are not bytes: `text` is null
};

/// One line of results.jsonl, without the newline. `scoring` writes prompt_logprobs (null first).
std::string result_line(const Request& request, const Result& result, bool scoring);
/// The line for a refused request: id (if it had one), line, error.
std::string error_line(const Request& request);
/// The reason in a line that error_line() made; nothing for other lines of results.
std::optional<std::string> error_in(std::string_view line);

/// Bytes of a byte-level token sequence as text; bytes that are not UTF-8 become U+FFFD.
std::string text_of(const std::vector<std::int32_t>& tokens);

}  // namespace atl::io
