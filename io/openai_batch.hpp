#pragma once
// Lines of OpenAI's batch format, in and out: requests to /v1/completions, and rendered ones to
// /v1/chat/completions, with their responses.

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "io/requests.hpp"

namespace atl::io {

/// Whether a line is of that format rather than of Atoll's own.
bool is_batch_line(const nlohmann::json& line);

/// The request in such a line, with the keys of Atoll's own; what a response needs beside it goes
/// to `batch`. A chat is rendered: its body has a `prompt` in place of `messages`. Throws Error
/// naming what is not supported: nothing of a body is passed over but what changes no response.
nlohmann::json request_in_batch_line(const nlohmann::json& line, BatchLine& batch);

/// The response, without the newline. Its times are 0, since results depend on requests alone.
std::string batch_result_line(const Request& request, const Result& result);
/// Whether a line of results is one of these.
bool is_batch_result(std::string_view line);
/// One response from those of all samples.
std::string joined_batch_line(std::span<const std::string> lines);
/// The line for a request that failed.
std::string batch_error_line(const Request& request);
/// The reason in a line that batch_error_line() made; nothing for other lines.
std::optional<std::string> batch_error_in(std::string_view line);

}  // namespace atl::io
