#include "io/openai_batch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/utf8.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr std::string_view completions = "/v1/completions";
constexpr std::string_view chat_completions = "/v1/chat/completions";
constexpr int invalid_request = 400;

// Taken over as they are: the keys of our own mean the same.
constexpr std::array same_keys = {"max_tokens",
                                  "temperature",
                                  "top_p",
                                  "seed",
                                  "stop_token_ids",
                                  "add_special_tokens",
                                  "n",
                                  "top_k",
                                  "min_p",
                                  "presence_penalty",
                                  "frequency_penalty",
                                  "logit_bias",
                                  "repetition_penalty",
                                  "stop",
                                  "min_tokens"};
// What must have this value, where it is given at all.
const Json& neutral_values() {
  static const Json values = {{"stream", false},
                              {"suffix", ""},
                              {"tools", Json::array()},
                              {"response_format", {{"type", "text"}}},
                              {"modalities", {"text"}}};
  return values;
}

bool is_ignored(const std::string& key) {
  static constexpr std::array keys = {
      "user", "metadata", "store", "safety_identifier", "service_tier", "prompt_cache_key"};
  return std::ranges::find(keys, key) != keys.end();
}

void take_prompt(const Json& body, Json& request) {
  if (body.contains("render_error")) {
    request["render_error"] = body["render_error"];
    return;
  }
  require(!body.contains("messages"),
          "\"messages\" need the model's chat template: render them with jobs/chat.py first");
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

/// A number in completions; in chats a flag, beside which the number stands.
void take_logprobs(const Json& body, BatchLine& batch, Json& request) {
  const Json wanted = body.value("logprobs", Json());
  const Json tops = body.value("top_logprobs", Json());
  if (!batch.chat) {
    require(tops.is_null(), "\"top_logprobs\" is for chats; give their number in \"logprobs\"");
    if (wanted.is_null()) return;
    require(wanted.is_number(), "\"logprobs\" is {}, must be a number", shown(wanted));
    batch.logprobs = true;
    request["top_logprobs"] = wanted;
    return;
  }
  require(wanted.is_null() || wanted.is_boolean(), "\"logprobs\" is {}, must be true or false",
          shown(wanted));
  batch.logprobs = wanted == true;
  if (tops.is_null()) return;
  require(batch.logprobs, "\"top_logprobs\" needs \"logprobs\": true");
  request["top_logprobs"] = tops;
}

void take_echo(const Json& value, BatchLine& batch) {
  require(value.is_boolean(), "\"echo\" is {}, must be true or false", shown(value));
  batch.echo = value.get<bool>();
  require(!batch.echo || !batch.chat, "\"echo\" is for completions; leave it out");
  require(!batch.echo || !batch.logprobs,
          "\"echo\" with \"logprobs\" is not supported: a prompt's are given by --mode score");
}

/// What names the same as another key of the body.
void take_synonym(const Json& body, const char* key, const char* other, Json& request) {
  require(body.value(other, Json()).is_null() || body[other] == body[key],
          "\"{}\" and \"{}\" differ; give one of them", other, key);
  request[other] = body[key];
}

void take_key(const Json& body, const std::string& key, BatchLine& batch, Json& request) {
  const Json& value = body[key];
  if (request.contains("render_error")) return;  // said later
  if (key == "prompt" || key == "logprobs" || key == "top_logprobs" || is_ignored(key)) return;
  if (std::ranges::find(same_keys, key) != same_keys.end()) {
    request[key] = value;
  } else if (key == "model") {
    require(value.is_string(), "\"model\" is {}, must be a string", shown(value));
    batch.model = value.get<std::string>();
  } else if (key == "max_completion_tokens") {
    take_synonym(body, "max_completion_tokens", "max_tokens", request);
  } else if (key == "echo") {
    take_echo(value, batch);
  } else if (key == "best_of") {
    const Json n = body.value("n", Json(1));
    require(value == (n.is_null() ? Json(1) : n), "\"best_of\" is {}, must be \"n\"", shown(value));
  } else {
    const auto neutral = neutral_values().find(key);
    require(neutral != neutral_values().end(), "\"{}\" is not supported; leave it out", key);
    require(value == *neutral, "\"{}\" is {}, which is not supported; leave it out", key,
            shown(value));
  }
}

/// The shortest digits that give the same float back.
OrderedJson number_of(float value) {
  return OrderedJson::parse(fmt::format("{}", value), nullptr, false);
}

/// What a result says of its tokens' probabilities.
class TokenProbabilities {
 public:
  TokenProbabilities(const Request& request, const Result& result)
      : result_(result), each_(static_cast<std::size_t>(request.top_logprobs)) {}

  OrderedJson of_completion() const;
  OrderedJson of_chat() const;

 private:
  std::size_t size() const { return result_.tokens.size(); }
  const std::string& bytes(std::size_t t) const { return result_.token_bytes.at(t); }
  /// Of token t's tops the i-th.
  const SampledToken& top(std::size_t t, std::size_t i) const {
    return result_.tops.at(t * each_ + i);
  }
  const std::string& top_bytes(std::size_t t, std::size_t i) const {
    return result_.token_bytes.at(size() + t * each_ + i);
  }
  static OrderedJson named(const std::string& bytes, float logprob);

  const Result& result_;
  std::size_t each_;
};

void add_once(OrderedJson& object, const std::string& key, const OrderedJson& value) {
  if (!object.contains(key)) object[key] = value;
}

OrderedJson TokenProbabilities::of_completion() const {
  OrderedJson tokens = OrderedJson::array();
  OrderedJson values = OrderedJson::array();
  OrderedJson all_tops = OrderedJson::array();
  OrderedJson offsets = OrderedJson::array();
  std::size_t offset = 0;  // in characters, as Python counts them
  for (std::size_t t = 0; t < size(); ++t) {
    const std::string text = mended_utf8(bytes(t));
    tokens.push_back(text);
    values.push_back(number_of(result_.logprobs.at(t)));
    offsets.push_back(offset);
    offset += static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
    OrderedJson tops = OrderedJson::object();
    for (std::size_t i = 0; i < each_; ++i) {
      if (top(t, i).token < 0) continue;
      // Of two with one text the more probable one.
      add_once(tops, mended_utf8(top_bytes(t, i)), number_of(top(t, i).logprob));
    }
    add_once(tops, text, values.back());
    all_tops.push_back(std::move(tops));
  }
  return {{"tokens", tokens},
          {"token_logprobs", values},
          {"top_logprobs", each_ > 0 ? all_tops : OrderedJson(nullptr)},
          {"text_offset", offsets}};
}

OrderedJson TokenProbabilities::named(const std::string& bytes, float logprob) {
  OrderedJson numbers = OrderedJson::array();
  for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
  return {{"token", mended_utf8(bytes)}, {"logprob", number_of(logprob)}, {"bytes", numbers}};
}

OrderedJson TokenProbabilities::of_chat() const {
  OrderedJson content = OrderedJson::array();
  for (std::size_t t = 0; t < size(); ++t) {
    OrderedJson token = named(bytes(t), result_.logprobs.at(t));
    OrderedJson tops = OrderedJson::array();
    for (std::size_t i = 0; i < each_; ++i) {
      if (top(t, i).token >= 0) tops.push_back(named(top_bytes(t, i), top(t, i).logprob));
    }
    token["top_logprobs"] = tops;
    content.push_back(token);
  }
  return {{"content", content}, {"refusal", nullptr}};
}

OrderedJson choice_of(const Request& request, const Result& result) {
  const BatchLine& batch = *request.batch;
  const std::string text = (batch.echo ? batch.prompt : "") + result.text.value_or("");
  OrderedJson choice = {{"index", request.part}};
  if (batch.chat) {
    choice["message"] = {{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
  } else {
    choice["text"] = text;
  }
  choice["token_ids"] = result.tokens;
  choice["logprobs"] = nullptr;
  if (batch.logprobs) {
    const TokenProbabilities probabilities(request, result);
    choice["logprobs"] = batch.chat ? probabilities.of_chat() : probabilities.of_completion();
  }
  choice["finish_reason"] = result.finish_reason;
  return choice;
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
  const Json path = line.value("url", Json(completions));
  require(path == completions || path == chat_completions,
          "\"url\" is {}, must be \"{}\" or \"{}\"", shown(path), completions, chat_completions);
  batch.chat = path == chat_completions;
  const Json method = line.value("method", Json("POST"));
  require(method == "POST", "\"method\" is {}, must be \"POST\"", shown(method));
  Json body = line["body"];
  for (auto member = body.begin(); member != body.end();) {  // null is "not given"
    member = member->is_null() ? body.erase(member) : std::next(member);
  }
  Json request = {{"id", line["custom_id"]}};
  take_prompt(body, request);
  request["temperature"] = 1;  // the API's, where a line says nothing
  take_logprobs(body, batch, request);
  for (const auto& [key, value] : body.items()) take_key(body, key, batch, request);
  return request;
}

std::string batch_result_line(const Request& request, const Result& result) {
  const std::int64_t prompt = result.prompt_tokens;
  const auto generated = static_cast<std::int64_t>(result.tokens.size());
  const bool chat = request.batch->chat;
  const std::string name = std::to_string(request.line);
  OrderedJson body = {{"id", (chat ? "chatcmpl-" : "cmpl-") + name},
                      {"object", chat ? "chat.completion" : "text_completion"},
                      {"created", 0},
                      {"model", request.batch->model}};
  body["choices"] = OrderedJson::array({choice_of(request, result)});
  body["usage"] = {{"prompt_tokens", prompt},
                   {"completion_tokens", generated},
                   {"total_tokens", prompt + generated}};
  OrderedJson line = envelope(request);
  line["response"] = {{"status_code", 200}, {"request_id", name}, {"body", body}};
  line["error"] = nullptr;
  return json_text(line);
}

/// The prompt counts once: it is computed for each sample, but asked for once.
std::string joined_batch_line(std::span<const std::string> lines) {
  OrderedJson all = OrderedJson::parse(lines.front());
  OrderedJson& body = all["response"]["body"];
  OrderedJson& usage = body["usage"];
  for (const std::string& line : lines.subspan(1)) {
    const OrderedJson one = OrderedJson::parse(line);
    const OrderedJson& own = one["response"]["body"];
    body["choices"].push_back(own["choices"][0]);
    for (const char* key : {"completion_tokens", "total_tokens"}) {
      usage[key] =
          usage[key].get<std::int64_t>() + own["usage"]["completion_tokens"].get<std::int64_t>();
    }
    // Samples of one request may have had different weights.
    if (all.contains("weights") && all["weights"] != one["weights"]) {
      all["weights"] = fmt::format("{} {}", all["weights"].get<std::string>(),
                                   one["weights"].get<std::string>());
    }
  }
  return json_text(all);
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
