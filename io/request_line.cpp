#include "io/request_line.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "compute/error.hpp"
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"
#include "io/model_text.hpp"
#include "io/openai_batch.hpp"
#include "io/request_forms.hpp"
#include "io/request_prompts.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

/// A whole number from 0 on, also one that is written 6.0 or 1e3. Nothing for others, and from 2^53
/// on for those written so, since a double may be another number than the one written.
std::optional<std::uint64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned()) return value.get<std::uint64_t>();
  if (!value.is_number()) return std::nullopt;
  constexpr double inexact = 9007199254740992.0;  // 2^53
  const auto exact = value.get<double>();
  if (!(exact >= 0 && exact < inexact) || exact != std::floor(exact)) return std::nullopt;
  return static_cast<std::uint64_t>(exact);
}

int integer(const Json& value, std::string_view key, int low, int high) {
  const auto whole = whole_number(value);
  const bool fits = whole && *whole >= static_cast<std::uint64_t>(low) &&
                    *whole <= static_cast<std::uint64_t>(high);
  require(fits, "\"{}\" is {}, must be an integer from {} to {}", key, shown(value), low, high);
  return static_cast<int>(*whole);
}

double number(const Json& value, const char* key) {
  require(value.is_number(), "\"{}\" is {}, must be a number", key, shown(value));
  return value.get<double>();
}

std::vector<std::int32_t> token_ids(const Json& value, std::string_view key, int vocab) {
  require(value.is_array(), "\"{}\" is {}, must be a list of token ids", key, shown(value));
  std::vector<std::int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    ids.push_back(integer(id, key, 0, vocab - 1));
  }
  return ids;
}

/// Text stays text here: prompts are encoded many at a time.
void parse_prompt(const Json& json, const RequestLimits& limits, const ModelText& text,
                  Request& request) {
  const bool has_prompt = json.contains("prompt") || !request.prompts.empty();
  require(has_prompt != json.contains("tokens"),
          "it has {} \"prompt\" {} \"tokens\"; give one of them", has_prompt ? "both" : "neither",
          has_prompt ? "and" : "nor");
  if (json.contains("add_special_tokens")) {
    const Json& add = json["add_special_tokens"];
    require(add.is_boolean(), "\"add_special_tokens\" is {}, must be true or false", shown(add));
    require(has_prompt,
            "\"add_special_tokens\" is for a \"prompt\"; \"tokens\" are taken as they are");
    request.add_special_tokens = add.get<bool>();
  }
  if (!request.prompts.empty()) return;
  if (!has_prompt) {
    request.tokens = token_ids(json["tokens"], said_as(request, "tokens"), limits.vocab);
    return;
  }
  const Json& prompt = json["prompt"];
  require(prompt.is_string(), "\"prompt\" is {}, must be a string", shown(prompt));
  require(text.why_not().empty(), "\"prompt\" needs a tokenizer: {}", text.why_not());
  require(prompt != "", "the prompt is empty; give at least one token");
  request.prompt = prompt.get<std::string>();
}

/// Several prompts, each a text or ids.
void parse_prompts(const Json& list, const RequestLimits& limits, const ModelText& text,
                   Request& request) {
  constexpr std::size_t most = 2048;
  require(list.size() <= most, "\"prompt\" has {} prompts, must have at most {}", list.size(),
          most);
  for (const Json& one : list) {
    TextOrTokens& prompt = request.prompts.emplace_back();
    if (!one.is_string()) {
      prompt.tokens = token_ids(one, "prompt", limits.vocab);
      continue;
    }
    require(text.why_not().empty(), "\"prompt\" needs a tokenizer: {}", text.why_not());
    require(one != "", "a prompt is empty; give at least one token");
    prompt.text = one.get<std::string>();
  }
}

double number_from(const Json& json, const char* key, double low, double high) {
  const double value = number(json[key], key);
  require(value >= low && value <= high, "\"{}\" is {}, must be from {} to {}", key,
          shown(json[key]), low, high);
  return value;
}

void parse_seed(const Json& json, Request& request) {
  if (!json.contains("seed")) return;
  const auto seed = whole_number(json["seed"]);
  require(seed.has_value(),
          "\"seed\" is {}, must be an integer from 0 to 2^64-1, without a point or an "
          "exponent from 2^53 on",
          shown(json["seed"]));
  request.seed = *seed;
  request.own_seed = true;
}

/// {"ID": BIAS, ...}
void parse_logit_bias(const Json& json, const RequestLimits& limits, Request& request) {
  const Json& biases = json["logit_bias"];
  require(biases.is_object(), "\"logit_bias\" is {}, must be an object of token ids and numbers",
          shown(biases));
  constexpr double largest = 1e30;
  for (const auto& [key, value] : biases.items()) {
    std::int32_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    require(error == std::errc() && end == key.data() + key.size() && token >= 0 &&
                token < limits.vocab,
            "\"logit_bias\" has the key {}, must be a token id from 0 to {}", shown(Json(key)),
            limits.vocab - 1);
    const double bias = number(value, "logit_bias");
    require(std::abs(bias) <= largest, "\"logit_bias\" has {}, must be from {} to {}", shown(value),
            -largest, largest);
    request.logit_bias.emplace_back(token, static_cast<float>(bias));
  }
  std::ranges::sort(request.logit_bias);
  const auto same = std::ranges::adjacent_find(request.logit_bias, {},
                                               [](const auto& entry) { return entry.first; });
  require(same == request.logit_bias.end(), "\"logit_bias\" names a token twice");
}

void parse_penalties(const Json& json, Request& request) {
  constexpr double most = 1e6;
  if (json.contains("repetition_penalty")) {
    request.repetition_penalty = number_from(json, "repetition_penalty", 1 / most, most);
  }
  if (json.contains("presence_penalty")) {
    request.presence_penalty = number_from(json, "presence_penalty", -most, most);
  }
  if (json.contains("frequency_penalty")) {
    request.frequency_penalty = number_from(json, "frequency_penalty", -most, most);
  }
}

/// One text, or a list of them.
void parse_stop(const Json& json, const ModelText& text, Request& request) {
  constexpr std::size_t most = 64;
  const Json list = json["stop"].is_array() ? json["stop"] : Json::array({json["stop"]});
  require(list.size() <= most, "\"stop\" has {} texts, must have at most {}", list.size(), most);
  for (const Json& stop : list) {
    require(stop.is_string() && stop != "", "\"stop\" has {}, must be texts that are not empty",
            shown(stop));
    request.stop.push_back(stop.get<std::string>());
  }
  require(request.stop.empty() || text.why_not().empty(), "\"stop\" needs a tokenizer: {}",
          text.why_not());
}

void parse_stops(const Json& json, const RequestLimits& limits, const ModelText& text,
                 Request& request) {
  if (json.contains("stop_token_ids")) {
    request.stop_token_ids = token_ids(json["stop_token_ids"], "stop_token_ids", limits.vocab);
  }
  if (json.contains("stop")) parse_stop(json, text, request);
  if (json.contains("min_tokens")) {
    request.min_tokens = integer(json["min_tokens"], "min_tokens", 0,
                                 request.max_tokens.value_or(limits.default_max_tokens));
  }
}

void parse_sampling(const Json& json, const RequestLimits& limits, Request& request) {
  constexpr int any = std::numeric_limits<int>::max();
  constexpr int most_samples = 1024;
  if (json.contains("max_tokens")) {
    // OpenAI's 0 is for who wants to hear of the prompt alone.
    request.max_tokens = integer(json["max_tokens"], said_as(request, "max_tokens"),
                                 request.batch && !request.batch->chat ? 0 : 1, any);
  }
  if (json.contains("temperature"))
    request.temperature = number(json["temperature"], "temperature");
  require(request.temperature >= 0 && std::isfinite(request.temperature),
          "\"temperature\" is {}, must be 0 (greedy) or more", request.temperature);
  if (json.contains("top_p")) request.top_p = number(json["top_p"], "top_p");
  require(request.top_p > 0 && request.top_p <= 1, "\"top_p\" is {}, must be above 0 and at most 1",
          request.top_p);
  // -1 is "all" in what many clients write.
  if (json.contains("top_k") && json["top_k"] != -1) {
    request.top_k = integer(json["top_k"], "top_k", 0, any);
  }
  if (json.contains("min_p")) request.min_p = number_from(json, "min_p", 0, 1);
  parse_penalties(json, request);
  if (json.contains("logit_bias")) parse_logit_bias(json, limits, request);
  parse_seed(json, request);
  if (json.contains("top_logprobs")) {
    request.top_logprobs =
        integer(json["top_logprobs"], said_as(request, "top_logprobs"), 0, most_tops);
  }
  if (json.contains("n")) request.samples = integer(json["n"], "n", 1, most_samples);
  request.parts = request.samples;
  constexpr std::size_t most_results = 1 << 16;
  const std::size_t results = request.prompts.size() * static_cast<std::size_t>(request.samples);
  require(results <= most_results, "{} prompts with {} samples each are more than {} results",
          request.prompts.size(), request.samples, most_results);
}

/// A list of texts or of lists of token ids.
void parse_continuations(const Json& json, const RequestLimits& limits, const ModelText& text,
                         Request& request) {
  if (!json.contains("continuations")) return;
  require(limits.scoring, "\"continuations\" are for --mode score");
  const Json& list = json["continuations"];
  constexpr std::size_t most = 1 << 16;
  require(list.is_array() && !list.empty() && list.size() <= most,
          "\"continuations\" is {}, must be a list of 1 to {} texts or lists of token ids",
          shown(list), most);
  for (const Json& one : list) {
    TextOrTokens& continuation = request.continuations.emplace_back();
    if (one.is_string()) {
      require(text.why_not().empty(), "a continuation that is a text needs a tokenizer: {}",
              text.why_not());
      continuation.text = one.get<std::string>();
    } else {
      continuation.tokens = token_ids(one, "continuations", limits.vocab);
    }
    require(one != "" && one != Json::array(), "a continuation is empty; give at least one token");
  }
}

/// What only generated tokens have to do with.
void require_no_generation(const Json& json) {
  for (const char* key : {"n", "top_logprobs", "stop", "min_tokens"}) {
    require(!json.contains(key), "\"{}\" is not for --mode score; leave it out", key);
  }
}

void check_keys(const Json& json) {
  static constexpr std::string_view known[] = {"id",
                                               "prompt",
                                               "tokens",
                                               "add_special_tokens",
                                               "max_tokens",
                                               "n",
                                               "temperature",
                                               "top_p",
                                               "top_k",
                                               "min_p",
                                               "repetition_penalty",
                                               "presence_penalty",
                                               "frequency_penalty",
                                               "logit_bias",
                                               "seed",
                                               "stop",
                                               "stop_token_ids",
                                               "min_tokens",
                                               "top_logprobs",
                                               "continuations"};
  for (const auto& [key, value] : json.items()) {
    require(std::find(std::begin(known), std::end(known), key) != std::end(known),
            "unknown key {}; known are {}", shown(Json(key)), fmt::join(known, ", "));
  }
}

Json parsed(const std::string& line) {
  require_shallow_json(line, "not usable");
  try {
    return Json::parse(line);
  } catch (const Json::parse_error& error) {
    std::string why = several_objects(line);
    if (why.empty()) why = not_utf8(line);
    fail("not valid JSON at byte {}: {}", error.byte, why.empty() ? shown(Json(line)) : why);
  } catch (const Json::out_of_range& error) {
    const std::string_view what = error.what();  // "... number overflow parsing '1e999'"
    fail("the number {} is too large", what.substr(std::min(what.find('\''), what.size())));
  }
}

/// Null stands for "not given" in what many clients write.
void remove_nulls(Json& json) {
  for (auto member = json.begin(); member != json.end();) {
    member = member->is_null() ? json.erase(member) : std::next(member);
  }
}

void require_no_envelope(const Json& json) {
  for (const char* key : {"body", "params", "request", "modelInput"}) {
    require(!json.contains(key) || !json[key].is_object(),
            "it is an envelope, such as OpenAI's batch format has; give \"id\" and, beside it and "
            "not in \"{}\", prompt, max_tokens and the like",
            key);
  }
}

void require_no_list(const Json& json) {
  if (json.contains("id")) return;
  for (const auto& [key, value] : json.items()) {
    const bool holds_requests = value.is_array() && !value.empty() && value[0].is_object() &&
                                (value[0].contains("prompt") || value[0].contains("tokens"));
    require(!holds_requests,
            "it is an object around requests, in {0}; write each of these as a line, with "
            "jq -c '.[{0}][]'",
            shown(Json(key)));
  }
}

/// The line in Atoll's own form. All lines of a file have the form of its first.
Json own_form(Json json, const RequestLimits& limits, std::optional<bool>& is_batch_file,
              Request& request) {
  const bool is_batch = is_batch_line(json);
  if (!is_batch_file) {
    is_batch_file = limits.format ? limits.format == LineFormat::openai : is_batch;
  }
  if (!*is_batch_file) return json;
  if (json.contains("custom_id") && json["custom_id"].is_string()) {
    request.id = json["custom_id"].get<std::string>();
  }
  require(is_batch, "{} of OpenAI's batch format; give \"custom_id\" and \"body\"",
          limits.format == LineFormat::openai ? "lines are to be" : "the file's other lines are");
  require(!limits.scoring, "scoring takes lines of Atoll's own form, not of OpenAI's batch format");
  return request_in_batch_line(json, request.batch.emplace());
}

}  // namespace

void parse_line(const std::string& line, const RequestLimits& limits, const ModelText& text,
                std::optional<bool>& is_batch_file, Request& request) {
  Json json = parsed(line);
  require(json.is_object(), "{} instead of a JSON object", shown(json));
  remove_nulls(json);
  json = own_form(std::move(json), limits, is_batch_file, request);
  require_no_envelope(json);
  require_no_list(json);
  require(json.contains("id"), "it has no \"id\"; give a string");
  const Json& id = json["id"];
  const std::string_view key = said_as(request, "id");
  require(!id.is_number_integer(), "\"{0}\" is {1}, must be a non-empty string; write \"{1}\"", key,
          shown(id));
  // Its digits may be others than those written.
  require(!id.is_number(), "\"{}\" is a number, must be a non-empty string; write it in quotes",
          key);
  require(id.is_string() && !id.get_ref<const std::string&>().empty(),
          "\"{}\" is {}, must be a non-empty string", key, shown(id));
  request.id = id.get<std::string>();
  if (json.contains("render_error")) {
    fail("{}", json["render_error"].is_string() ? json["render_error"].get<std::string>()
                                                : "\"render_error\" is for jobs/chat.py");
  }
  require(!json.contains("messages"),
          "\"messages\" need the model's chat template: render them with jobs/chat.py first");
  if (request.batch && json.contains("prompts")) {
    parse_prompts(json["prompts"], limits, text, request);
    json.erase("prompts");
  }
  check_keys(json);
  if (limits.scoring) require_no_generation(json);
  parse_prompt(json, limits, text, request);
  request.seed = sample_seed(limits.seed, request.id);
  parse_sampling(json, limits, request);
  parse_stops(json, limits, text, request);
  parse_continuations(json, limits, text, request);
  require(!request.batch || !request.batch->logprobs || text.why_not().empty(),
          "\"logprobs\" of a batch line are by tokens' texts, and this model has none ({}); a line "
          "of Atoll's own with \"top_logprobs\" has them by ids",
          text.why_not());
  const auto said_back = [&](const std::optional<std::string>& prompt, const auto& tokens) {
    return prompt ? *prompt : text.decode(tokens, {.special_tokens = true});
  };
  if (request.batch && request.batch->echo) {
    request.batch->prompt = said_back(request.prompt, request.tokens);
    for (TextOrTokens& prompt : request.prompts) {
      prompt.echo = said_back(prompt.text, prompt.tokens);
    }
  }
  for (const TextOrTokens& prompt : request.prompts) {
    if (!prompt.text) check_length(prompt.tokens, request, limits);
  }
  if (!request.prompt && request.prompts.empty()) check_length(request.tokens, request, limits);
}

}  // namespace atl::io
