#include "io/request_prompts.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/model_text.hpp"

namespace atl::io {
namespace {

constexpr std::size_t max_threads = 32;
// A thread's tables and caches take some hundred microseconds to set up.
constexpr std::size_t bytes_worth_a_thread = 1 << 16;

std::size_t cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max<std::size_t>(1, static_cast<std::size_t>(CPU_COUNT(&set)));
}

}  // namespace

std::string_view said_as(const Request& request, std::string_view key) {
  if (!request.batch) return key;
  if (key == "id") return "custom_id";
  if (key == "tokens") return "prompt";
  if (key == "max_tokens" && request.batch->says_completion_tokens) return "max_completion_tokens";
  return key == "top_logprobs" && !request.batch->chat ? "logprobs" : key;
}

void check_length(const std::vector<std::int32_t>& tokens, const Request& request,
                  const RequestLimits& limits) {
  require(!tokens.empty(), "the prompt is empty; give at least one token");
  const auto prompt = static_cast<std::int64_t>(tokens.size());
  const char* why = limits.index_beyond
                        ? " (beyond these its attention selects keys by an index, which is not "
                          "supported)"
                        : "";
  require(prompt <= limits.max_positions,
          "the prompt has {} tokens, the model has {} positions{}; shorten it", prompt,
          limits.max_positions, why);
  if (limits.scoring) return;
  const std::int64_t generated = request.max_tokens.value_or(limits.default_max_tokens);
  require(prompt + generated <= limits.max_positions,
          "the prompt's {} tokens and {} to be generated exceed the model's {} positions{}; "
          "lower {} or shorten the prompt",
          prompt, generated, limits.max_positions, why, said_as(request, "max_tokens"));
}

void PromptEncoder::require_known(const std::vector<std::int32_t>& tokens, const char* what) const {
  const auto beyond =
      std::ranges::find_if(tokens, [&](std::int32_t token) { return token >= limits_.vocab; });
  require(beyond == tokens.end(),
          "the tokenizer gives the {0} the token id {1}, and the model has {2}; take that token "
          "out of the {0}",
          what, beyond == tokens.end() ? 0 : *beyond, limits_.vocab);
}

std::vector<std::int32_t> PromptEncoder::encode_prompt(const Request& request,
                                                       const std::string& text,
                                                       EncodeMemory& memory) const {
  auto tokens = text_.encode(text, request.add_special_tokens, memory);
  require_known(tokens, "prompt");
  check_length(tokens, request, limits_);
  return tokens;
}

/// The text's tokens after those of a prompt are what both together have beyond the prompt's
/// number, as evaluations count them; after a prompt of ids it stands by itself.
void PromptEncoder::encode_continuation(const Request& request, TextOrTokens& continuation,
                                        EncodeMemory& memory) const {
  if (!continuation.text) return;
  const bool joined = request.prompt.has_value();
  continuation.tokens =
      text_.encode(joined ? *request.prompt + *continuation.text : *continuation.text,
                   joined && request.add_special_tokens, memory);
  if (joined) {
    const auto prompt = std::min(request.tokens.size(), continuation.tokens.size());
    continuation.tokens.erase(continuation.tokens.begin(),
                              continuation.tokens.begin() + static_cast<std::ptrdiff_t>(prompt));
  }
  require(!continuation.tokens.empty(),
          "the continuation {} has no token of its own after the prompt; move the prompt's last "
          "characters into it",
          shown(nlohmann::json(*continuation.text)));
  require_known(continuation.tokens, "continuation");
  continuation.text.reset();
}

void PromptEncoder::encode_one(Request& request, EncodeMemory& memory) const {
  try {
    if (request.prompt) request.tokens = encode_prompt(request, *request.prompt, memory);
    for (TextOrTokens& prompt : request.prompts) {
      if (prompt.text) prompt.tokens = encode_prompt(request, *prompt.text, memory);
      prompt.text.reset();
    }
    for (TextOrTokens& continuation : request.continuations) {
      encode_continuation(request, continuation, memory);
    }
  } catch (const Error& error) {
    request.error = error.what();
  }
  request.prompt.reset();
}

void PromptEncoder::encode_all(const std::vector<Request*>& waiting, std::size_t num_threads) {
  while (memories_.size() < num_threads) memories_.emplace_back();
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&](EncodeMemory& memory) {
    try {
      for (std::size_t i = next++; i < waiting.size(); i = next++) encode_one(*waiting[i], memory);
    } catch (...) {  // no memory
      const std::lock_guard lock(failure_mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t t = 1; t < num_threads; ++t) {
    threads.emplace_back(work, std::ref(memories_[t]));
  }
  work(memories_[0]);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

namespace {

/// Continuations together with their prompt.
void check_continuations(Request& request, const RequestLimits& limits) {
  const std::size_t prompt = request.tokens.size();
  for (const TextOrTokens& continuation : request.continuations) {
    const std::size_t tokens = prompt + continuation.tokens.size();
    if (tokens <= static_cast<std::size_t>(limits.max_positions)) continue;
    request.error = fmt::format(
        "the prompt and a continuation have {} tokens, the model has {} positions; shorten it",
        tokens, limits.max_positions);
    return;
  }
}

/// What the parts of a line have different.
struct Different {
  std::vector<TextOrTokens> prompts;
  std::vector<TextOrTokens> continuations;
};

void make_part(Request& request, int part, const Different& different,
               const RequestLimits& limits) {
  request.part = part;
  if (!different.prompts.empty()) {
    const auto& prompt = different.prompts[static_cast<std::size_t>(part / request.samples)];
    request.tokens = prompt.tokens;
    request.batch->prompt = prompt.echo;
  }
  if (request.own_seed) {
    request.seed += static_cast<std::uint64_t>(part);
  } else if (part > 0) {
    request.seed = sample_seed(limits.seed, request.id, static_cast<std::uint64_t>(part));
  }
  if (different.continuations.empty()) return;
  request.scored_from = std::ssize(request.tokens);
  const auto& tokens = different.continuations[static_cast<std::size_t>(part)].tokens;
  request.tokens.insert(request.tokens.end(), tokens.begin(), tokens.end());
}

}  // namespace

std::vector<Request> in_parts(std::vector<Request> requests, const RequestLimits& limits) {
  std::vector<Request> all;
  all.reserve(requests.size());
  for (Request& request : requests) {
    check_continuations(request, limits);
    const Different different{std::exchange(request.prompts, {}),
                              std::exchange(request.continuations, {})};
    if (!different.continuations.empty()) {
      request.parts = static_cast<int>(different.continuations.size());
    }
    if (!different.prompts.empty()) {
      request.parts = request.samples * static_cast<int>(different.prompts.size());
    }
    if (!request.error.empty()) {
      request.parts = 1;
      all.push_back(std::move(request));
      continue;
    }
    for (int part = 0; part + 1 < request.parts; ++part) {
      make_part(all.emplace_back(request), part, different, limits);
    }
    make_part(request, request.parts - 1, different, limits);
    all.push_back(std::move(request));
  }
  return all;
}

void PromptEncoder::encode(std::vector<Request>& requests, bool all_cores) {
  std::vector<Request*> waiting;
  std::size_t bytes = 0;
  for (Request& request : requests) {
    if (!request.error.empty()) {
      request.prompt.reset();
      continue;
    }
    const std::size_t before = bytes;
    const std::size_t prompt = request.prompt ? request.prompt->size() : 0;
    bytes += prompt;
    for (const TextOrTokens& each : request.prompts) {
      if (each.text) bytes += each.text->size();
    }
    for (const TextOrTokens& continuation : request.continuations) {
      if (continuation.text) bytes += prompt + continuation.text->size();
    }
    if (bytes > before) waiting.push_back(&request);
  }
  if (waiting.empty()) return;
  const std::size_t useful =
      std::min({cores(), max_threads, waiting.size(), bytes / bytes_worth_a_thread + 1});
  encode_all(waiting, all_cores ? useful : 1);
}

}  // namespace atl::io
