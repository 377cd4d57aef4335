#include "app/model/description.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "app/model/kept_config.hpp"
#include "compute/error.hpp"
#include "compute/sampling.hpp"
#include "io/json_shown.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

// As in version 1: far above any model of today, and small enough for every product below.
constexpr std::int64_t max_width = 1 << 24;
constexpr std::int64_t max_count = 65536;
constexpr std::int64_t max_head_dim = 4096;
constexpr std::int64_t max_context = 1 << 27;

/// The shortest decimal number that is this float.
double shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

template <class T>
struct Named {
  const char* name;
  T value;
};
constexpr std::array<Named<QkNorm>, 3> qk_norms = {
    {{"none", QkNorm::none}, {"per_head", QkNorm::per_head}, {"whole_row", QkNorm::whole_row}}};
constexpr std::array<Named<Activation>, 3> activations = {
    {{"gelu_tanh", Activation::gelu_tanh},
     {"swiglu", Activation::swiglu},
     {"swiglu_clamped", Activation::swiglu_clamped}}};
constexpr std::array<Named<RouterScore>, 3> scores = {
    {{"softmax", RouterScore::softmax},
     {"sigmoid", RouterScore::sigmoid},
     {"softmax_of_chosen", RouterScore::softmax_of_chosen}}};
constexpr std::array<Named<GroupScore>, 2> group_scores = {
    {{"best", GroupScore::best}, {"two_best", GroupScore::two_best}}};
constexpr std::array<Named<DType>, 3> dtypes = {
    {{"bfloat16", DType::bfloat16}, {"float16", DType::float16}, {"float32", DType::float32}}};

template <class Table, class T>
std::string name_in(const Table& table, T value) {
  return std::find_if(table.begin(), table.end(),
                      [&](const auto& row) { return row.value == value; })
      ->name;
}

/// An object of the description: typed look-ups, and in the end no key that nobody asked for.
class Object {
 public:
  Object(const Json& json, std::string name) : json_(json), name_(std::move(name)) {
    require(json.is_object(), "the configuration's {} is {}, must be an object", name_,
            shown(json));
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  const Json& at(const char* key) {
    used_.insert(key);
    require(has(key), "the configuration's {} has no key \"{}\"; add it", name_, key);
    return json_[key];
  }
  int integer(const char* key, std::int64_t low, std::int64_t high) {
    return checked(at(key), key, low, high);
  }
  int integer_or(const char* key, std::int64_t low, std::int64_t high, int otherwise) {
    used_.insert(key);
    return has(key) ? integer(key, low, high) : otherwise;
  }
  double number(const char* key, double low, double high) {
    return checked(at(key), key, low, high);
  }
  float number_or(const char* key, double low, double high, float otherwise) {
    used_.insert(key);
    return has(key) ? static_cast<float>(number(key, low, high)) : otherwise;
  }
  bool flag(const char* key) {
    used_.insert(key);
    if (!has(key)) return false;
    require(json_[key].is_boolean(), "configuration key \"{}\" of {} is {}, must be true or false",
            key, name_, shown(json_[key]));
    return json_[key].get<bool>();
  }
  template <class T, std::size_t N>
  T one_of(const char* key, const std::array<Named<T>, N>& table) {
    const Json& value = at(key);
    std::vector<std::string> names;
    for (const auto& row : table) {
      if (value == row.name) return row.value;
      names.emplace_back(row.name);
    }
    fail("configuration key \"{}\" of {} is {}, must be one of {}", key, name_, shown(value),
         fmt::join(names, ", "));
  }
  std::vector<int> integers(const char* key, std::int64_t low, std::int64_t high) {
    std::vector<int> values;
    for (const Json& value : list(key)) values.push_back(checked(value, key, low, high));
    return values;
  }
  std::vector<double> numbers(const char* key, double low, double high) {
    std::vector<double> values;
    for (const Json& value : list(key)) values.push_back(checked(value, key, low, high));
    return values;
  }
  const Json& list(const char* key) {
    const Json& value = at(key);
    require(value.is_array(), "configuration key \"{}\" of {} is {}, must be a list", key, name_,
            shown(value));
    return value;
  }
  void done() const {
    for (const auto& [key, value] : json_.items()) {
      require(used_.contains(key),
              "the configuration's {} has a key \"{}\", which this version does not know; use the "
              "one that wrote the file",
              name_, key);
    }
  }

 private:
  int checked(const Json& value, const char* key, std::int64_t low, std::int64_t high) const {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<std::uint64_t>() > static_cast<std::uint64_t>(high)) &&
                      value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
    require(fits, "configuration key \"{}\" of {} is {}, must be an integer from {} to {}", key,
            name_, shown(value), low, high);
    return value.get<int>();
  }
  double checked(const Json& value, const char* key, double low, double high) const {
    const double number = value.is_number() ? value.get<double>() : std::nan("");
    require(number >= low && number <= high,
            "configuration key \"{}\" of {} is {}, must be a number from {} to {}", key, name_,
            shown(value), low, high);
    return number;
  }

  const Json& json_;
  std::string name_;
  std::set<std::string> used_;
};

Rope read_rope(const Json& json) {
  Object object(json, "rope");
  Rope rope;
  rope.dims = object.integer("dims", 2, max_head_dim);
  rope.factor = object.number("factor", 1e-6, 1e6);
  rope.frequencies = object.numbers("frequencies", 0, 1e6);
  object.done();
  require(rope.dims % 2 == 0 && rope.frequencies.size() * 2 == static_cast<std::size_t>(rope.dims),
          "the configuration's rope has {} frequencies for {} dimensions; it needs half as many",
          rope.frequencies.size(), rope.dims);
  return rope;
}

LatentAttention read_latent(const Json& json) {
  Object object(json, "latent");
  LatentAttention latent;
  latent.queries = object.integer("queries", 0, max_width);
  latent.keys = object.integer("keys", 1, max_width);
  latent.rope = object.integer("rope", 2, max_head_dim);
  latent.eps = static_cast<float>(object.number("eps", 1e-20, 1));
  object.done();
  return latent;
}

void read_attention(const Json& json, ModelShape& shape) {
  Object object(json, "attention");
  shape.num_heads = object.integer("num_heads", 1, max_count);
  shape.head_dim = object.integer("head_dim", 2, max_head_dim);
  shape.value_dim = object.integer("value_dim", 1, max_head_dim);
  shape.qk_norm = object.one_of("qk_norm", qk_norms);
  shape.norm_after_rope = object.flag("norm_after_rope");
  shape.qkv_bias = object.flag("qkv_bias");
  shape.output_bias = object.flag("output_bias");
  shape.attention_scale = static_cast<float>(object.number("scale", 1e-9, 1e9));
  shape.value_scale = object.number_or("value_scale", 1e-9, 1e9, 1);
  shape.temperature.beta = object.number_or("temperature", 0, 1e3, 0);
  shape.temperature.interval = object.integer_or("temperature_interval", 1, max_context, 1);
  shape.index_top_k = object.integer_or("index_top_k", 0, max_context, 0);
  if (object.has("latent")) shape.latent = read_latent(object.at("latent"));
  object.done();
}

AttentionKind read_kind(const Json& json) {
  Object object(json, "attention kind");
  AttentionKind kind;
  kind.num_kv_heads = object.integer("num_kv_heads", 1, max_count);
  kind.window = object.integer("window", 0, max_context);
  kind.sinks = object.flag("sinks");
  kind.rope = object.integer("rope", 0, 255);
  object.done();
  return kind;
}

void read_router(const Json& json, ModelShape& shape) {
  Object object(json, "router");
  Router& router = shape.router;
  router.score = object.one_of("score", scores);
  router.logit_bias = object.flag("logit_bias");
  router.selection_bias = object.flag("selection_bias");
  router.groups = object.integer("groups", 1, max_count);
  router.top_groups = object.integer("top_groups", 1, max_count);
  router.group_score = object.one_of("group_score", group_scores);
  shape.norm_topk_prob = object.flag("normalise");
  router.normalise_floor = object.number_or("normalise_floor", 0, 1, 0);
  router.scale = object.number_or("scale", 1e-9, 1e9, 1);
  object.done();
}

/// A dense MLP, or experts.
void read_feed_forward(const Json& json, ModelShape& shape, bool& dense) {
  Object object(json, "feed-forward kind");
  const Json& type = object.at("type");
  require(type == "dense" || type == "experts",
          "configuration key \"type\" of a feed-forward kind is {}, must be dense or experts",
          shown(type));
  dense = type == "dense";
  if (dense) {
    shape.intermediate = object.integer("width", 1, max_width);
    return object.done();
  }
  shape.moe_intermediate = object.integer("width", 1, max_width);
  shape.num_experts = object.integer("num_experts", 1, max_count);
  shape.top_k = object.integer("top_k", 1, shape.num_experts);
  shape.expert_bias = object.flag("bias");
  shape.shared_intermediate = object.integer_or("shared_width", 0, max_width, 0);
  shape.shared_gate = object.flag("shared_gate");
  read_router(object.at("router"), shape);
  object.done();
}

/// A list of at most 255 kinds.
const Json& kinds_in(Object& top, const char* key) {
  const Json& list = top.list(key);
  require(!list.empty() && list.size() <= 255,
          "configuration key \"{}\" has {} entries; 1 to 255 are supported", key, list.size());
  return list;
}

void read_layers(Object& top, ModelShape& shape) {
  for (const Json& rope : kinds_in(top, "ropes")) shape.ropes.push_back(read_rope(rope));
  for (const Json& kind : kinds_in(top, "attention_kinds")) {
    shape.attentions.push_back(read_kind(kind));
    shape.num_kv_heads = std::max(shape.num_kv_heads, shape.attentions.back().num_kv_heads);
  }
  std::vector<bool> kinds;
  for (const Json& kind : top.list("feed_forward_kinds")) {
    bool dense = false;
    read_feed_forward(kind, shape, dense);
    require(std::find(kinds.begin(), kinds.end(), dense) == kinds.end(),
            "the configuration has two feed-forward kinds of type {}; one of each is supported",
            dense ? "dense" : "experts");
    kinds.push_back(dense);
  }
  require(shape.num_experts > 0,
          "the configuration has no feed-forward kind of type experts; add it");
  const auto last = [](std::size_t count) { return static_cast<std::int64_t>(count) - 1; };
  for (const int kind : top.integers("attention_of_layer", 0, last(shape.attentions.size()))) {
    shape.attention_of.push_back(static_cast<std::uint8_t>(kind));
  }
  for (const int kind : top.integers("feed_forward_of_layer", 0, last(kinds.size()))) {
    shape.layer_is_dense.push_back(kinds[static_cast<std::size_t>(kind)]);
  }
  const auto layers = static_cast<std::size_t>(shape.num_layers);
  require(shape.attention_of.size() == layers && shape.layer_is_dense.size() == layers,
          "the configuration's attention_of_layer and feed_forward_of_layer have {} and {} entries "
          "for {} layers",
          shape.attention_of.size(), shape.layer_is_dense.size(), layers);
}

Json router_json(const ModelShape& shape) {
  const Router& router = shape.router;
  return {{"score", name_in(scores, router.score)},
          {"logit_bias", router.logit_bias},
          {"selection_bias", router.selection_bias},
          {"groups", router.groups},
          {"top_groups", router.top_groups},
          {"group_score", name_in(group_scores, router.group_score)},
          {"normalise", shape.norm_topk_prob},
          {"normalise_floor", shortest(router.normalise_floor)},
          {"scale", shortest(router.scale)}};
}

Json attention_json(const ModelShape& shape) {
  Json json = {{"num_heads", shape.num_heads},
               {"head_dim", shape.head_dim},
               {"value_dim", shape.values_dim()},
               {"qk_norm", name_in(qk_norms, shape.qk_norm)},
               {"norm_after_rope", shape.norm_after_rope},
               {"qkv_bias", shape.qkv_bias},
               {"output_bias", shape.output_bias},
               {"scale", shortest(shape.logit_scale())},
               {"value_scale", shortest(shape.value_scale)}};
  if (shape.temperature.beta > 0) {
    json["temperature"] = shortest(shape.temperature.beta);
    json["temperature_interval"] = shape.temperature.interval;
  }
  if (shape.index_top_k > 0) json["index_top_k"] = shape.index_top_k;
  if (shape.latent.used()) {
    json["latent"] = {{"queries", shape.latent.queries},
                      {"keys", shape.latent.keys},
                      {"rope", shape.latent.rope},
                      {"eps", shortest(shape.latent.eps)}};
  }
  return json;
}

Json feed_forward_kinds(const ModelShape& shape) {
  Json kinds = Json::array();
  const auto& dense = shape.layer_is_dense;
  if (std::find(dense.begin(), dense.end(), true) != dense.end()) {
    kinds.push_back({{"type", "dense"}, {"width", shape.intermediate}});
  }
  kinds.push_back({{"type", "experts"},
                   {"width", shape.moe_intermediate},
                   {"num_experts", shape.num_experts},
                   {"top_k", shape.top_k},
                   {"bias", shape.expert_bias},
                   {"shared_width", shape.shared_intermediate},
                   {"shared_gate", shape.shared_gate},
                   {"router", router_json(shape)}});
  return kinds;
}

}  // namespace

ModelConfig config_of_description(const Json& json) {
  Object top(json, "description");
  ModelConfig config;
  ModelShape& shape = config.shape;
  top.integer("version", 2, 2);
  shape.hidden = top.integer("hidden_size", 1, max_width);
  shape.num_layers = top.integer("num_layers", 1, 4096);
  shape.vocab = top.integer("vocab_size", 1, compute::max_vocab);
  shape.max_positions = top.integer("max_positions", 1, max_context);
  shape.rms_eps = static_cast<float>(top.number("rms_norm_eps", 1e-20, 1e6));
  shape.embedding_scale = top.number_or("embedding_scale", 1e-9, 1e9, 1);
  shape.activation = top.one_of("activation", activations);
  shape.clamp_limit = top.number_or("clamp_limit", 1e-6, 1e9, shape.clamp_limit);
  shape.clamp_alpha = top.number_or("clamp_alpha", 1e-6, 1e9, shape.clamp_alpha);
  read_attention(top.at("attention"), shape);
  read_layers(top, shape);
  config.dtype = top.one_of("dtype", dtypes);
  config.tie_word_embeddings = top.flag("tie_word_embeddings");
  for (const int id : top.integers("stop_token_ids", 0, shape.vocab - 1)) {
    config.stop_token_ids.push_back(id);
  }
  if (top.has(kept_kinds_key)) {
    read_kept(top.at(kept_kinds_key), top.at(kept_of_layer_key), shape);
  }
  top.done();
  check_shape_of(shape);
  return config;
}

Json description_of(const ModelConfig& config) {
  const ModelShape& shape = config.shape;
  Json ropes = Json::array();
  for (std::size_t i = 0; i < shape.num_ropes(); ++i) {
    const Rope rope = shape.rope(i);
    ropes.push_back(
        {{"dims", rope.dims}, {"factor", rope.factor}, {"frequencies", rope.frequencies}});
  }
  Json kinds = Json::array();
  std::vector<int> attention_of(static_cast<std::size_t>(shape.num_layers), 0);
  if (!shape.attentions.empty()) {
    attention_of.assign(shape.attention_of.begin(), shape.attention_of.end());
  }
  const std::size_t num_kinds = std::max<std::size_t>(shape.attentions.size(), 1);
  for (std::size_t k = 0; k < num_kinds; ++k) {
    const AttentionKind kind = shape.attentions.empty() ? shape.attention(0) : shape.attentions[k];
    kinds.push_back({{"num_kv_heads", kind.num_kv_heads},
                     {"window", kind.window},
                     {"sinks", kind.sinks},
                     {"rope", kind.rope}});
  }
  const Json feed_forwards = feed_forward_kinds(shape);
  std::vector<int> feed_forward_of;
  for (const bool dense : shape.layer_is_dense) {
    feed_forward_of.push_back(dense ? 0 : static_cast<int>(feed_forwards.size()) - 1);
  }
  Json json = {{"version", 2},
               {"hidden_size", shape.hidden},
               {"num_layers", shape.num_layers},
               {"vocab_size", shape.vocab},
               {"max_positions", shape.max_positions},
               {"rms_norm_eps", shortest(shape.rms_eps)},
               {"embedding_scale", shortest(shape.embedding_scale)},
               {"activation", name_in(activations, shape.activation)},
               {"attention", attention_json(shape)},
               {"attention_kinds", kinds},
               {"attention_of_layer", attention_of},
               {"ropes", ropes},
               {"feed_forward_kinds", feed_forwards},
               {"feed_forward_of_layer", feed_forward_of},
               {"dtype", name_in(dtypes, config.dtype)},
               {"tie_word_embeddings", config.tie_word_embeddings},
               {"stop_token_ids", config.stop_token_ids}};
  if (shape.activation == Activation::swiglu_clamped) {
    json["clamp_limit"] = shortest(shape.clamp_limit);
    json["clamp_alpha"] = shortest(shape.clamp_alpha);
  }
  add_kept(shape, json);
  return json;
}

void check_shape_of(const ModelShape& s) {
  for (const AttentionKind& kind : s.attentions) {
    require(
        s.num_heads % kind.num_kv_heads == 0,
        "the configuration has {} key/value heads in a kind of attention, which must divide its "
        "{} query heads",
        kind.num_kv_heads, s.num_heads);
    require(static_cast<std::size_t>(kind.rope) < s.num_ropes(),
            "the configuration's attention names rope {} of {}", kind.rope, s.num_ropes());
    const int turned = s.rope(static_cast<std::size_t>(kind.rope)).dims;
    require(s.latent.used() ? turned == s.latent.rope : turned <= s.head_dim,
            "the configuration's rope turns {} dimensions of heads that have {}", turned,
            s.latent.used() ? s.latent.rope : s.head_dim);
    require(
        !s.latent.used() || (kind.window == 0 && !kind.sinks && kind.num_kv_heads == s.num_heads),
        "the configuration's latent attention has windows, sinks or shared heads; none is "
        "supported");
    require(s.qk_norm != QkNorm::whole_row || kind.num_kv_heads == s.num_kv_heads,
            "the configuration normalises whole rows of other widths in different layers, which is "
            "not supported");
    require(!s.norm_after_rope || (s.qk_norm == QkNorm::per_head &&
                                   s.rope(static_cast<std::size_t>(kind.rope)).factor == 1),
            "the configuration normalises after rope, which is supported per head, for ropes of "
            "factor 1");
  }
  require(
      s.head_dim % 2 == 0 && (s.latent.used() || s.values_dim() <= s.head_dim),
      "the configuration has head_dim {} and values of {}; the first must be even, and not less",
      s.head_dim, s.values_dim());
  require(
      !s.latent.used() ||
          (s.latent.rope < s.head_dim && s.latent.rope % 2 == 0 && s.latent.keys % 2 == 0 &&
           s.qk_norm == QkNorm::none && s.value_scale == 1),
      "the configuration's latent attention has rope {} of head_dim {} and a latent of {}; they "
      "must be even, the first one less",
      s.latent.rope, s.head_dim, s.latent.keys);
  require(s.temperature.beta == 0 || s.latent.used(),
          "the configuration has a query temperature, which is supported for latent attention");
  const Router& router = s.router;
  require(
      s.num_experts == 0 ||
          (router.groups > 0 && router.top_groups > 0 && router.top_groups <= router.groups &&
           s.num_experts % router.groups == 0 &&
           s.top_k <= s.num_experts / router.groups * router.top_groups),
      "the configuration chooses {} experts from {} of {} groups of {} experts, which cannot be",
      s.top_k, router.top_groups, router.groups, s.num_experts);
  require(router.score != RouterScore::softmax_of_chosen || router.scale == 1,
          "the configuration scales a softmax over chosen experts, which is not supported");
  require(s.index_top_k == 0 || s.max_positions <= s.index_top_k,
          "the configuration's attention selects {} keys by an index, which is not supported for "
          "longer contexts: max_positions is {}, must be at most that",
          s.index_top_k, s.max_positions);
}

}  // namespace atl
