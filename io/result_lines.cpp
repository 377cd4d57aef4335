// Lines of results in Atoll's own form, and what both forms have in common.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "io/json_shown.hpp"
#include "io/openai_batch.hpp"
#include "io/requests.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

std::string json_string(const std::string& text) {
  return json_text(Json(text));
}

/// The shortest digits that give the same number back.
template <class Number>
std::string shown(Number value) {
  return std::isfinite(value) ? fmt::format("{}", value) : std::string("null");
}

std::string list_of(const std::vector<float>& values, bool null_first = false) {
  std::string text = null_first ? "[null" : "[";
  for (float value : values) {
    if (text.size() > 1) text += ',';
    text += shown(value);
  }
  return text + ']';
}

/// [[{"token":ID,"logprob":X}, ...], ...], a list for each token.
std::string tops_of(const Request& request, const Result& result) {
  std::string text = "[";
  const auto each = static_cast<std::size_t>(request.top_logprobs);
  for (std::size_t i = 0; i < result.tops.size(); ++i) {
    const SampledToken& top = result.tops[i];
    text += i % each > 0 ? "," : i > 0 ? ",[" : "[";
    text += fmt::format(R"({{"token":{},"logprob":{}}})", top.token, shown(top.logprob));
    if ((i + 1) % each == 0) text += ']';
  }
  return text + ']';
}

std::string continuation_line(const Request& request, const Result& result) {
  const double sum = std::accumulate(result.logprobs.begin(), result.logprobs.end(), 0.0);
  return fmt::format(R"({{"id":{},"tokens":[{}],"logprobs":{},"logprob":{},"greedy":{}}})",
                     json_string(request.id), fmt::join(result.tokens, ","),
                     list_of(result.logprobs), shown(sum), result.greedy);
}

constexpr std::string_view weights_key = R"(,"weights":")";

/// Lines without the key that with_weights() adds, and what it says; nothing where it is not there.
struct Named {
  std::vector<std::string> lines;
  std::vector<std::string> weights;
};

Named without_weights(std::span<const std::string> lines) {
  Named named;
  for (const std::string& line : lines) {
    // Names have no quotes, and within strings quotes are escaped, so that this is a key.
    const std::size_t key = line.rfind(weights_key);
    const std::size_t name = key + weights_key.size();
    const bool last = key != std::string::npos && line.find('"', name) + 2 == line.size();
    named.lines.push_back(last ? line.substr(0, key) + '}' : line);
    if (last) named.weights.push_back(line.substr(name, line.size() - 2 - name));
  }
  return named;
}

/// Those of all parts: their one name, or where these differ the name of each.
std::string with_names(std::string line, const std::vector<std::string>& names) {
  if (names.empty()) return line;
  const bool one = std::ranges::all_of(names, [&](const auto& name) { return name == names[0]; });
  if (one) return with_weights(std::move(line), names[0]);
  line.insert(line.size() - 1, fmt::format(R"(,"weights":{})", json_text(Json(names))));
  return line;
}

/// Of {"id":"...", and what follows: how long that much is.
std::size_t end_of_id(std::string_view line) {
  std::size_t at = line.find(':') + 2;
  while (line[at] != '"') at += line[at] == '\\' ? 2 : 1;
  return at + 2;
}

}  // namespace

std::string result_line(const Request& request, const Result& result, bool scoring) {
  if (request.batch) return batch_result_line(request, result);
  if (request.is_continuation()) return continuation_line(request, result);
  if (scoring) {
    return fmt::format(R"({{"id":{},"prompt_logprobs":{}}})", json_string(request.id),
                       list_of(result.logprobs, true));
  }
  const std::string tops =
      request.top_logprobs > 0 ? R"(,"top_logprobs":)" + tops_of(request, result) : "";
  return fmt::format(R"({{"id":{},"tokens":[{}],"text":{},"logprobs":{}{},"finish_reason":{}}})",
                     json_string(request.id), fmt::join(result.tokens, ","),
                     result.text ? json_string(*result.text) : "null", list_of(result.logprobs),
                     tops, json_string(result.finish_reason));
}

std::string joined_line(bool continuations, std::span<const std::string> lines) {
  for (const std::string& line : lines) {
    if (error_in(line)) return line;
  }
  const Named named = without_weights(lines);
  const auto& parts = named.lines;
  if (is_batch_result(parts.front())) {
    return with_names(joined_batch_line(parts), named.weights);
  }
  const std::size_t begin = end_of_id(parts.front());
  std::string text = fmt::format(R"({}"{}":[)", std::string_view(parts.front()).substr(0, begin),
                                 continuations ? "continuations" : "samples");
  for (const std::string& line : parts) {
    if (text.back() != '[') text += ',';
    text += '{' + line.substr(begin);
  }
  return with_names(text + "]}", named.weights);
}

std::vector<float> scored_in(std::string_view line) {
  const Json result = Json::parse(line);
  std::vector<float> logprobs;
  for (const char* key : {"prompt_logprobs", "logprobs"}) {
    for (const Json& logprob : result.value(key, Json::array())) {
      if (!logprob.is_null()) logprobs.push_back(logprob.get<float>());
    }
  }
  return logprobs;
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
