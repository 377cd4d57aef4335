#include "io/request_prompts.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "compute/error.hpp"
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

void check_length(const Request& request, const RequestLimits& limits) {
  require(!request.tokens.empty(), "the prompt is empty; give at least one token");
  const auto prompt = static_cast<std::int64_t>(request.tokens.size());
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
          "lower max_tokens or shorten the prompt",
          prompt, generated, limits.max_positions, why);
}

void PromptEncoder::encode_one(Request& request, EncodeMemory& memory) const {
  try {
    request.tokens = text_.encode(*request.prompt, request.add_special_tokens, memory);
    const auto beyond = std::ranges::find_if(
        request.tokens, [&](std::int32_t token) { return token >= limits_.vocab; });
    require(beyond == request.tokens.end(),
            "the tokenizer gives the prompt the token id {}, and the model has {}; take that token "
            "out of the prompt",
            beyond == request.tokens.end() ? 0 : *beyond, limits_.vocab);
    check_length(request, limits_);
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

void PromptEncoder::encode(std::vector<Request>& requests, bool all_cores) {
  std::vector<Request*> waiting;
  std::size_t bytes = 0;
  for (Request& request : requests) {
    if (!request.prompt) continue;
    if (!request.error.empty()) {
      request.prompt.reset();
      continue;
    }
    bytes += request.prompt->size();
    waiting.push_back(&request);
  }
  if (waiting.empty()) return;
  const std::size_t useful =
      std::min({cores(), max_threads, waiting.size(), bytes / bytes_worth_a_thread + 1});
  encode_all(waiting, all_cores ? useful : 1);
}

}  // namespace atl::io
