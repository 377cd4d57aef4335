#include "app/run/identity.hpp"

#include <fmt/format.h>

namespace atl {

using nlohmann::ordered_json;

namespace {

/// Counts the ways in which the same logits and options gave other tokens: 3 gives each request
/// without a seed one of its own, 2 gave it 0 and draws over the kept tokens by id, 1 drew by
/// falling probability.
constexpr const char* sampler_version = "3";

/// Of the ways in which the same model and options gave other logits, the one of this program:
/// 1 rounded the residual stream to the activations' type (and was not named).
constexpr const char* arithmetic_version = "3 (norms of whole rows add up head by head)";

/// What decides how tokens are drawn and when they end, where it is not as usual.
std::string draw_text(const io::Request& r) {
  std::string text;
  if (r.top_k != 0 || r.min_p != 0) text += fmt::format("kept {} {:a}\n", r.top_k, r.min_p);
  if (r.sampling().penalises()) {
    text += fmt::format("penalties {:a} {:a} {:a}\n", r.repetition_penalty, r.presence_penalty,
                        r.frequency_penalty);
  }
  for (const auto& [token, bias] : r.logit_bias) text += fmt::format("bias {} {:a}\n", token, bias);
  if (r.top_logprobs != 0 || r.min_tokens != 0) {
    text += fmt::format("tops {} at least {}\n", r.top_logprobs, r.min_tokens);
  }
  for (const std::string& stop : r.stop) text += fmt::format("stop {} {}\n", stop.size(), stop);
  return text;
}

std::string parts_text(const io::Request& r) {
  return r.in_parts() ? fmt::format("part {} of {}, from {}\n", r.part, r.parts, r.scored_from)
                      : "";
}

}  // namespace

std::string identity_text(const io::Request& r) {
  std::string text = fmt::format("{} {} {} {} {} {:a} {:a} {} {} {} {}\n", r.line, r.id.size(),
                                 r.id, fmt::join(r.tokens, ","), r.max_tokens.value_or(-1),
                                 r.temperature, r.top_p, r.own_seed ? std::to_string(r.seed) : "-",
                                 fmt::join(r.stop_token_ids, ","), r.error.size(), r.error);
  // It decides the form of the result.
  if (r.batch) text += fmt::format("batch {} {}\n", r.batch->model, r.batch->logprobs);
  if (r.batch && (r.batch->chat || r.batch->echo)) {
    text += fmt::format("form {} {} {} {}\n", r.batch->chat, r.batch->echo, r.batch->prompt.size(),
                        r.batch->prompt);
  }
  return text + draw_text(r) + parts_text(r);
}

bool draws_without_seed(const io::Request& r) {
  return r.error.empty() && r.temperature > 0 && !r.own_seed;
}

ordered_json identity_of(const RunOptions& options, std::uint64_t model, DType dtype,
                         const Arithmetic& arithmetic, const InputFacts& input) {
  const bool updated = !options.control.empty();
  const bool seeded = options.mode == Mode::generate && input.draws_from_job_seed;
  ordered_json identity = {
      {"model", updated ? "as each result says (--control)" : fmt::format("{:016x}", model)},
      {"input", input.text},
      {"mode", std::string(name_of(options.mode))},
      {"max-tokens", std::to_string(options.max_tokens)},
      {"kv-tokens", std::to_string(options.kv_tokens)},  // requests that do not fit are refused
      {"sampler", sampler_version},
      {"seed", seeded ? std::to_string(options.seed) : "unused"},
      {"dtype", std::string(name_of(dtype))},
      {"arithmetic", arithmetic_version},
      {"backend", arithmetic.backend}};
  if (!arithmetic.isa.empty()) identity["isa"] = arithmetic.isa;
  if (!arithmetic.devices.empty()) identity["devices"] = arithmetic.devices;
  if (updated) identity["update"] = std::string(name_of(options.update));
  return identity;
}

std::string isa_of(const ordered_json& identity) {
  if (!identity.is_object()) return "";
  const auto found = identity.find("isa");
  return found != identity.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string difference(const ordered_json& was, const ordered_json& is) {
  if (!was.is_object()) return "it does not say what was run";
  std::string text;
  const auto value = [](const ordered_json& object, const std::string& name) {
    const auto found = object.find(name);
    return found == object.end() ? std::string("unknown")
           : found->is_string()  ? found->get<std::string>()
                                 : found->dump();
  };
  const auto compare = [&](const std::string& name) {
    const std::string before = value(was, name);
    const std::string now = value(is, name);
    if (before == now) return;
    text += fmt::format("{}{} was {} and is {}", text.empty() ? "" : "; ", name, before, now);
  };
  for (const auto& [name, ignored] : is.items()) compare(name);
  for (const auto& [name, ignored] : was.items()) {
    if (!is.contains(name)) compare(name);
  }
  return text;
}

}  // namespace atl
