#include "app/run/admitted.hpp"

#include <cstring>
#include <type_traits>
#include <utility>

#include "compute/error.hpp"

namespace atl {

namespace {

constexpr std::int32_t no_max_tokens = -1;

struct Head {
  std::int32_t request = 0;
  std::int32_t cached = 0;
  std::int64_t line = 0;
  std::int32_t max_tokens = no_max_tokens;
  std::int32_t own_seed = 0;
  double temperature = 0;
  double top_p = 1;
  std::uint64_t seed = 0;
  std::uint64_t id_bytes = 0;
  std::uint64_t tokens = 0;
  std::uint64_t stop_tokens = 0;
  std::int32_t top_k = 0;
  std::int32_t top_logprobs = 0;
  std::int32_t min_tokens = 0;
  std::int32_t parts = 1;
  std::int32_t part = 0;
  std::int32_t samples = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::int64_t scored_from = 0;
  std::uint64_t biases = 0;
  std::uint64_t stops = 0;
  std::int32_t is_batch_line = 0;
  std::int32_t batch_logprobs = 0;
  std::int32_t batch_chat = 0;
  std::int32_t batch_echo = 0;
};

using Bias = std::pair<std::int32_t, float>;

void append_bytes(std::string& text, const void* data, std::size_t bytes) {
  text.append(static_cast<const char*>(data), bytes);
}

void append_ids(std::string& text, const std::vector<std::int32_t>& ids) {
  append_bytes(text, ids.data(), ids.size() * sizeof(ids[0]));
}

void append_text(std::string& text, const std::string& part) {
  const std::uint64_t bytes = part.size();
  append_bytes(text, &bytes, sizeof(bytes));
  text += part;
}

/// Takes what lies at the front of a message.
class Front {
 public:
  explicit Front(std::string_view text) : text_(text) {}

  bool empty() const { return text_.empty(); }
  std::string_view take(std::uint64_t bytes) {
    require(bytes <= text_.size(), "internal: a message of requests ends early");
    const std::string_view part = text_.substr(0, bytes);
    text_.remove_prefix(bytes);
    return part;
  }
  template <class Value>
  Value take_value() {
    Value value;
    std::memcpy(&value, take(sizeof(value)).data(), sizeof(value));
    return value;
  }
  std::string take_text() { return std::string(take(take_value<std::uint64_t>())); }
  std::vector<std::int32_t> take_ids(std::uint64_t count) {
    require(count <= text_.size() / sizeof(std::int32_t),
            "internal: a message of requests ends early");
    std::vector<std::int32_t> ids(count);
    const std::string_view part = take(count * sizeof(std::int32_t));
    if (count > 0) std::memcpy(ids.data(), part.data(), part.size());
    return ids;
  }

 private:
  std::string_view text_;
};

}  // namespace

void append_to(std::string& text, const Admitted& admitted) {
  static_assert(std::is_trivially_copyable_v<Head>);
  const io::Request& asked = admitted.asked;
  const io::BatchLine batch = asked.batch.value_or(io::BatchLine());
  const Head head = {admitted.request,
                     admitted.cached,
                     asked.line,
                     asked.max_tokens.value_or(no_max_tokens),
                     asked.own_seed ? 1 : 0,
                     asked.temperature,
                     asked.top_p,
                     asked.seed,
                     asked.id.size(),
                     asked.tokens.size(),
                     asked.stop_token_ids.size(),
                     asked.top_k,
                     asked.top_logprobs,
                     asked.min_tokens,
                     asked.parts,
                     asked.part,
                     asked.samples,
                     asked.min_p,
                     asked.repetition_penalty,
                     asked.presence_penalty,
                     asked.frequency_penalty,
                     asked.scored_from,
                     asked.logit_bias.size(),
                     asked.stop.size(),
                     asked.batch ? 1 : 0,
                     batch.logprobs ? 1 : 0,
                     batch.chat ? 1 : 0,
                     batch.echo ? 1 : 0};
  append_bytes(text, &head, sizeof(head));
  append_bytes(text, asked.id.data(), asked.id.size());
  append_ids(text, asked.tokens);
  append_ids(text, asked.stop_token_ids);
  append_bytes(text, asked.logit_bias.data(), asked.logit_bias.size() * sizeof(Bias));
  for (const std::string& stop : asked.stop) append_text(text, stop);
  if (!asked.batch) return;
  append_text(text, batch.model);
  append_text(text, batch.prompt);
}

std::vector<Admitted> admitted_from(std::string_view text) {
  std::vector<Admitted> all;
  for (Front front(text); !front.empty();) {
    const auto head = front.take_value<Head>();
    Admitted& admitted = all.emplace_back();
    admitted.request = head.request;
    admitted.cached = head.cached;
    io::Request& asked = admitted.asked;
    asked.line = head.line;
    if (head.max_tokens != no_max_tokens) asked.max_tokens = head.max_tokens;
    asked.own_seed = head.own_seed != 0;
    asked.temperature = head.temperature;
    asked.top_p = head.top_p;
    asked.seed = head.seed;
    asked.id = front.take(head.id_bytes);
    asked.tokens = front.take_ids(head.tokens);
    asked.stop_token_ids = front.take_ids(head.stop_tokens);
    asked.top_k = head.top_k;
    asked.top_logprobs = head.top_logprobs;
    asked.min_tokens = head.min_tokens;
    asked.parts = head.parts;
    asked.part = head.part;
    asked.samples = head.samples;
    asked.min_p = head.min_p;
    asked.repetition_penalty = head.repetition_penalty;
    asked.presence_penalty = head.presence_penalty;
    asked.frequency_penalty = head.frequency_penalty;
    asked.scored_from = head.scored_from;
    for (std::uint64_t i = 0; i < head.biases; ++i) {
      asked.logit_bias.push_back(front.take_value<Bias>());
    }
    for (std::uint64_t i = 0; i < head.stops; ++i) asked.stop.push_back(front.take_text());
    if (head.is_batch_line == 0) continue;
    io::BatchLine& batch = asked.batch.emplace();
    batch.logprobs = head.batch_logprobs != 0;
    batch.chat = head.batch_chat != 0;
    batch.echo = head.batch_echo != 0;
    batch.model = front.take_text();
    batch.prompt = front.take_text();
  }
  return all;
}

}  // namespace atl
