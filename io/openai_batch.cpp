#include "io/openai_batch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_shown.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr std::string_view url = "/v1/completions";
constexpr int invalid_request = 400;

// Taken over as they are: the keys of our own mean the same.
constexpr std::array same_keys = {"max_tokens", "temperature",    "top_p",
                                  "seed",       "stop_token_ids", "add_special_tokens"};
// What must have this value, where it is given at all, until more is supported.
const Json& neutral_values() {
  static const Json values = {{"n", 1},
                              {"best_of", 1},
                              {"echo", false},
                              {"stream", false},
                              {"frequency_penalty", 0},
                              {"presence_penalty", 0},
                              {"repetition_penalty", 1},
                              {"logit_bias", Json::object()},
                              {"stop", Json::array()},
                              {"suffix", ""},
                              {"top_k", -1},
                              {"min_p", 0}};
  return values;
}

bool is_ignored(const std::string& key) {
  return key == "user" || key == "metadata";
}

void take_prompt(const Json& body, Json& request) {
  require(!body.contains("messages"),
          "\"messages\" need the model's chat template; render them to a \"prompt\" first");
  require(body.contains("prompt"), "its body has no \"prompt\"");
  const Json& prompt = body["prompt"];
  const bool is_list = prompt.is_array() && !prompt.empty();
  if (is_list && prompt[0].is_number()) {
    request["tokens"] = prompt;
    return;
  }
  require(!is_list || prompt.size() == 1, "its prompt is a list of {}; give one prompt a line",
          prompt.size());
  request["prompt"] = is_list ? prompt[0] : prompt;
  if (request["prompt"].is_array()) {  // one list of ids in a list
    request["tokens"] = request["prompt"];
    request.erase("prompt");
  }
}

void take_logprobs(const Json& value, BatchLine& batch) {
  require(value == 0, "\"logprobs\" is {}; only 0, the chosen tokens' own, is supported",
          shown(value));
  batch.logprobs = true;
}

Json logprobs_of(const Result& result) {
  Json tokens = Json::array();
  Json values = Json::array();
  Json offsets = Json::array();
  std::size_t offset = 0;  // in characters, as Python counts them
  for (std::size_t t = 0; t < result.tokens.size(); ++t) {
    const std::string& text = result.token_texts.at(t);
    tokens.push_back(text);
    // The shortest digits that give the same float back.
    values.push_back(Json::parse(fmt::format("{}", result.logprobs.at(t)), nullptr, false));
    offsets.push_back(offset);
    offset += static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
  }
  return {{"tokens", tokens},
          {"token_logprobs", values},
          {"top_logprobs", nullptr},
          {"text_offset", offsets}};
}

/// What stands around every response.
OrderedJson envelope(const Request& request) {
  OrderedJson line = {{"id", fmt::format("batch_req_{}", request.line)}};
  line["custom_id"] = request.id.empty() ? Json(nullptr) : Json(request.id);
  return line;
}

}  // namespace

bool is_batch_line(const Json& line) {
  return line.is_object() && line.contains("custom_id") && line.contains("body");
}

Json request_in_batch_line(const Json& line, BatchLine& batch) {
  require(line["body"].is_object(), "its \"body\" is {}, must be an object", shown(line["body"]));
  for (const auto& [key, value] : line.items()) {
    const bool known = key == "custom_id" || key == "body" || key == "method" || key == "url";
    require(known, "unknown key {}; a line has custom_id, method, url and body", shown(Json(key)));
  }
  const Json& body = line["body"];
  Json request = {{"id", line["custom_id"]}};
  take_prompt(body, request);
  const Json path = line.value("url", Json(url));
  require(path == url, "\"url\" is {}, must be \"{}\"", shown(path), url);
  const Json method = line.value("method", Json("POST"));
  require(method == "POST", "\"method\" is {}, must be \"POST\"", shown(method));
  request["temperature"] = 1;  // the API's, where a line says nothing
  for (const auto& [key, value] : body.items()) {
    if (value.is_null() || key == "prompt" || is_ignored(key)) continue;
    const auto neutral = neutral_values().find(key);
    if (std::ranges::find(same_keys, key) != same_keys.end()) {
      request[key] = value;
    } else if (key == "model") {
      require(value.is_string(), "\"model\" is {}, must be a string", shown(value));
      batch.model = value.get<std::string>();
    } else if (key == "logprobs") {
      take_logprobs(value, batch);
    } else if (neutral != neutral_values().end()) {
      const bool off = value == *neutral || (key == "top_k" && value == 0);
      require(off, "\"{}\" is {}, which is not supported; leave it out", key, shown(value));
    } else {
      fail("\"{}\" is not supported; leave it out", key);
    }
  }
  return request;
}

std::string batch_result_line(const Request& request, const Result& result) {
  const std::int64_t prompt = result.prompt_tokens;
  const auto generated = static_cast<std::int64_t>(result.tokens.size());
  OrderedJson choice = {{"index", 0}, {"text", result.text.value_or("")}};
  choice["token_ids"] = result.tokens;
  choice["logprobs"] = request.batch->logprobs ? logprobs_of(result) : Json(nullptr);
  choice["finish_reason"] = result.finish_reason;
  const std::string name = std::to_string(request.line);
  OrderedJson body = {{"id", "cmpl-" + name},
                      {"object", "text_completion"},
                      {"created", 0},
                      {"model", request.batch->model}};
  body["choices"] = OrderedJson::array({choice});
  body["usage"] = {{"prompt_tokens", prompt},
                   {"completion_tokens", generated},
                   {"total_tokens", prompt + generated}};
  OrderedJson line = envelope(request);
  line["response"] = {{"status_code", 200}, {"request_id", name}, {"body", body}};
  line["error"] = nullptr;
  return json_text(line);
}

std::string batch_error_line(const Request& request) {
  OrderedJson line = envelope(request);
  const OrderedJson reason = {{"message", request.error},
                              {"type", "invalid_request_error"},
                              {"param", nullptr},
                              {"code", nullptr}};
  line["response"] = {{"status_code", invalid_request},
                      {"request_id", std::to_string(request.line)},
                      {"body", {{"error", reason}}}};
  line["error"] = {{"code", "invalid_request"}, {"message", request.error}};
  return json_text(line);
}

std::optional<std::string> batch_error_in(std::string_view line) {
  // Within strings quotes are escaped, so that these are keys.
  if (!line.starts_with("{\"id\":\"batch_req_")) return std::nullopt;
  if (line.find(",\"error\":{\"code\":") == std::string_view::npos) return std::nullopt;
  return Json::parse(line).at("error").at("message").get<std::string>();
}

}  // namespace atl::io
