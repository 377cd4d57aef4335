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
  if (is_list && prompt.size() > 1) {
    request["prompts"] = prompt;
    return;
  }
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
    batch.says_completion_tokens = !body.contains("max_tokens");
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

/// Some tokens of a result, and what it says of their probabilities.
struct TokenList {
  const std::vector<float>& logprobs;     // of the last ones
  const std::vector<SampledToken>& tops;  // the same, so many each
  const std::vector<std::string>& bytes;  // of each token, then of `tops`
  std::size_t size = 0;
  std::size_t each = 0;

  std::size_t unknown() const { return size - logprobs.size(); }
  bool known(std::size_t t) const { return t >= unknown(); }
  float logprob(std::size_t t) const { return logprobs[t - unknown()]; }
  /// Of token t's tops the i-th.
  std::size_t top_at(std::size_t t, std::size_t i) const { return (t - unknown()) * each + i; }
  const SampledToken& top(std::size_t t, std::size_t i) const { return tops.at(top_at(t, i)); }
  const std::string& top_bytes(std::size_t t, std::size_t i) const {
    return bytes.at(size + top_at(t, i));
  }
};

void add_once(OrderedJson& object, const std::string& key, const OrderedJson& value) {
  if (!object.contains(key)) object[key] = value;
}

/// The "logprobs" of a completion.
class CompletionLogprobs {
 public:
  void add(const TokenList& list);
  OrderedJson json(bool with_tops) const {
    return {{"tokens", tokens_},
            {"token_logprobs", values_},
            {"top_logprobs", with_tops ? tops_ : OrderedJson(nullptr)},
            {"text_offset", offsets_}};
  }

 private:
  OrderedJson tokens_ = OrderedJson::array();
  OrderedJson values_ = OrderedJson::array();
  OrderedJson tops_ = OrderedJson::array();
  OrderedJson offsets_ = OrderedJson::array();
  std::size_t offset_ = 0;  // in characters, as Python counts them
};

void CompletionLogprobs::add(const TokenList& list) {
  for (std::size_t t = 0; t < list.size; ++t) {
    const std::string text = mended_utf8(list.bytes.at(t));
    tokens_.push_back(text);
    offsets_.push_back(offset_);
    offset_ += static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (c & 0xc0) != 0x80; }));
    if (!list.known(t)) {  // nothing comes before it
      values_.push_back(nullptr);
      tops_.push_back(nullptr);
      continue;
    }
    values_.push_back(number_of(list.logprob(t)));
    OrderedJson tops = OrderedJson::object();
    for (std::size_t i = 0; i < list.each; ++i) {
      const SampledToken& top = list.top(t, i);
      // Of two with one text the more probable one.
      if (top.token >= 0) add_once(tops, mended_utf8(list.top_bytes(t, i)), number_of(top.logprob));
    }
    add_once(tops, text, values_.back());
    tops_.push_back(std::move(tops));
  }
}

OrderedJson named_token(const std::string& bytes, float logprob) {
  OrderedJson numbers = OrderedJson::array();
  for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
  return {{"token", mended_utf8(bytes)}, {"logprob", number_of(logprob)}, {"bytes", numbers}};
}

/// The "logprobs" of a chat.
OrderedJson chat_logprobs(const TokenList& list) {
  OrderedJson content = OrderedJson::array();
  for (std::size_t t = 0; t < list.size; ++t) {
    OrderedJson token = named_token(list.bytes.at(t), list.logprob(t));
    OrderedJson tops = OrderedJson::array();
    for (std::size_t i = 0; i < list.each; ++i) {
      const SampledToken& top = list.top(t, i);
      if (top.token >= 0) tops.push_back(named_token(list.top_bytes(t, i), top.logprob));
    }
    token["top_logprobs"] = tops;
    content.push_back(token);
  }
  return {{"content", content}, {"refusal", nullptr}};
}

OrderedJson logprobs_of(const Request& request, const Result& result) {
  const auto each = static_cast<std::size_t>(request.top_logprobs);
  const TokenList own{result.logprobs, result.tops, result.token_bytes, result.tokens.size(), each};
  if (request.batch->chat) return chat_logprobs(own);
  CompletionLogprobs all;
  if (request.scores_prompt()) {
    all.add({result.prompt_logprobs, result.prompt_tops, result.prompt_bytes, result.prompt.size(),
             each});
  }
  all.add(own);
  return all.json(each > 0);
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
  if (batch.logprobs) choice["logprobs"] = logprobs_of(request, result);
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
  // It counts once: it is computed for each sample, but asked for once.
  const std::int64_t prompt = request.part % request.samples == 0 ? result.prompt_tokens : 0;
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

std::string joined_batch_line(std::span<const std::string> lines) {
  OrderedJson all = OrderedJson::parse(lines.front());
  OrderedJson& body = all["response"]["body"];
  OrderedJson& usage = body["usage"];
  for (const std::string& line : lines.subspan(1)) {
    const OrderedJson one = OrderedJson::parse(line);
    const OrderedJson& own = one["response"]["body"];
    body["choices"].push_back(own["choices"][0]);
    for (auto& [key, tokens] : usage.items()) {
      tokens = tokens.get<std::int64_t>() + own["usage"][key].get<std::int64_t>();
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

bool is_batch_result(std::string_view line) {
  return line.starts_with("{\"id\":\"batch_req_") && line.find("\",\"custom_id\":") != line.npos;
}

std::optional<std::string> batch_error_in(std::string_view line) {
  // Within strings quotes are escaped, so that these are keys.
  if (!line.starts_with("{\"id\":\"batch_req_")) return std::nullopt;
  if (line.find(",\"error\":{\"code\":") == std::string_view::npos) return std::nullopt;
  return Json::parse(line).at("error").at("message").get<std::string>();
}

}  // namespace atl::io
