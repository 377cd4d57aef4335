#include "app/run/identity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "io/model_file.hpp"

namespace atl {

using nlohmann::ordered_json;

namespace {

/// Counts the ways in which the same logits and options gave other tokens: 3 gives each request
/// without a seed one of its own, 2 gave it 0 and draws over the kept tokens by id, 1 drew by
/// falling probability.
constexpr const char* sampler_version = "3";

/// Of the ways in which the same model and options gave other logits, the one of this program:
/// 1 rounded the residual stream to the activations' type (and was not named).
constexpr const char* arithmetic_version = "2 (residual stream in float32)";

/// Of what was understood, not of the file's bytes: those cannot be read twice from a pipe.
std::uint64_t checksum_of(const std::vector<io::Request>& requests) {
  std::string text;
  for (const io::Request& r : requests) {
    text += fmt::format("{} {} {} {} {} {:a} {:a} {} {} {} {}\n", r.line, r.id.size(), r.id,
                        fmt::join(r.tokens, ","), r.max_tokens.value_or(-1), r.temperature, r.top_p,
                        r.own_seed ? std::to_string(r.seed) : "-", fmt::join(r.stop_token_ids, ","),
                        r.error.size(), r.error);
    // It decides the form of the result.
    if (r.batch) text += fmt::format("batch {} {}\n", r.batch->model, r.batch->logprobs);
  }
  return io::checksum_of(std::as_bytes(std::span(text)));
}

/// Whether the job's seed decides any token.
bool draws_from_job_seed(const RunOptions& options, const std::vector<io::Request>& requests) {
  return options.mode == Mode::generate &&
         std::any_of(requests.begin(), requests.end(), [](const io::Request& r) {
           return r.error.empty() && r.temperature > 0 && !r.own_seed;
         });
}

}  // namespace

ordered_json identity_of(const RunOptions& options, std::uint64_t model, DType dtype,
                         const Arithmetic& arithmetic, const std::vector<io::Request>& requests) {
  ordered_json identity = {
      {"model", fmt::format("{:016x}", model)},
      {"input", fmt::format("{:016x}", checksum_of(requests))},
      {"mode", std::string(name_of(options.mode))},
      {"max-tokens", std::to_string(options.max_tokens)},
      {"kv-tokens", std::to_string(options.kv_tokens)},  // requests that do not fit are refused
      {"sampler", sampler_version},
      {"seed", draws_from_job_seed(options, requests) ? std::to_string(options.seed) : "unused"},
      {"dtype", std::string(name_of(dtype))},
      {"arithmetic", arithmetic_version},
      {"backend", arithmetic.backend}};
  if (!arithmetic.isa.empty()) identity["isa"] = arithmetic.isa;
  if (!arithmetic.devices.empty()) identity["devices"] = arithmetic.devices;
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
