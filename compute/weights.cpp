#include "compute/weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr std::array<const char*, 30> weight_names = {"embedding",     "attention_norm",
                                                      "qkv",           "o",
                                                      "q_norm",        "k_norm",
                                                      "ffn_norm",      "router",
                                                      "gate",          "up",
                                                      "down",          "final_norm",
                                                      "lm_head",       "qkv_bias",
                                                      "output_bias",   "sinks",
                                                      "router_bias",   "selection_bias",
                                                      "gate_bias",     "up_bias",
                                                      "down_bias",     "shared_gate",
                                                      "shared_up",     "shared_down",
                                                      "shared_router", "q_latent_norm",
                                                      "q_up",          "kv_latent_norm",
                                                      "k_up",          "v_up"};

/// Writes the rows of one layer, or of what is outside the layers.
class Rows {
 public:
  Rows(std::vector<WeightInfo>& table, int layer, std::string prefix)
      : table_(table), layer_(layer), prefix_(std::move(prefix)) {}

  void vector(Weight id, Cut cut, Dataset dataset) {
    add(id, Use::vector, cut, 1, {std::move(dataset)}, "/weight");
  }
  void bias(Weight id, Cut cut, std::vector<Dataset> datasets) {
    add(id, Use::vector, cut, 1, std::move(datasets), "/bias");
  }
  void matrix(Weight id, Cut cut, std::int64_t cols, std::vector<Dataset> datasets) {
    add(id, Use::matrix, cut, cols, std::move(datasets), "/weight");
  }
  /// A dense MLP's weights, or those of each expert.
  void mlp(const ModelShape& s, std::int64_t inner, const std::string& prefix) {
    const std::size_t first = table_.size();
    const bool gated = s.activation != Activation::gelu_tanh;
    const bool per_expert = !s.is_dense(layer_);
    if (gated) matrix(Weight::gate, Cut::inner_rows, s.hidden, {{prefix + "gate_proj", inner}});
    matrix(Weight::up, Cut::inner_rows, s.hidden, {{prefix + "up_proj", inner}});
    matrix(Weight::down, Cut::inner_columns, inner, {{prefix + "down_proj", s.hidden}});
    if (per_expert && s.expert_bias) {
      if (gated) bias(Weight::gate_bias, Cut::inner_rows, {{prefix + "gate_proj", inner}});
      bias(Weight::up_bias, Cut::inner_rows, {{prefix + "up_proj", inner}});
      bias(Weight::down_bias, Cut::inner_columns, {{prefix + "down_proj", s.hidden}});
    }
    for (std::size_t i = first; i < table_.size(); ++i) table_[i].per_expert = per_expert;
  }

 private:
  void add(Weight id, Use use, Cut cut, std::int64_t cols, std::vector<Dataset> datasets,
           const char* suffix) {
    WeightInfo info{id, layer_, false, use, cut, 0, cols, std::move(datasets), {}};
    for (Dataset& dataset : info.datasets) {
      dataset.path = prefix_ + dataset.path + suffix;
      info.rows += dataset.rows;
    }
    table_.push_back(std::move(info));
  }

  std::vector<WeightInfo>& table_;
  int layer_;
  std::string prefix_;
};

/// Queries, keys and values from the normed row.
void add_projections(Rows& rows, const ModelShape& s, int layer) {
  const std::int64_t kv_heads = s.attention(layer).num_kv_heads;
  const std::vector<Dataset> parts = {{"self_attn/q_proj", s.q_width()},
                                      {"self_attn/k_proj", kv_heads * s.head_dim},
                                      {"self_attn/v_proj", kv_heads * s.values_dim()}};
  rows.matrix(Weight::qkv, Cut::heads_of_rows, s.hidden, parts);
  if (s.qkv_bias) rows.bias(Weight::qkv_bias, Cut::heads_of_rows, parts);
}

/// The same by latents.
void add_latents(Rows& rows, const ModelShape& s) {
  const LatentAttention& latent = s.latent;
  const bool q_latent = latent.queries > 0;
  const Dataset queries = q_latent ? Dataset{"self_attn/q_a_proj", latent.queries}
                                   : Dataset{"self_attn/q_proj", s.q_width()};
  const std::vector<Dataset> parts = {queries, {"self_attn/kv_a_proj", latent.width()}};
  const Cut cut = q_latent ? Cut::none : Cut::heads_of_rows;
  rows.matrix(Weight::qkv, cut, s.hidden, parts);
  if (s.qkv_bias) rows.bias(Weight::qkv_bias, cut, parts);
  if (q_latent) {
    rows.vector(Weight::q_latent_norm, Cut::none, {"self_attn/q_a_norm", latent.queries});
    rows.matrix(Weight::q_up, Cut::heads_of_rows, latent.queries,
                {{"self_attn/q_b_proj", s.q_width()}});
  }
  const std::int64_t heads = s.num_heads;
  rows.vector(Weight::kv_latent_norm, Cut::none, {"self_attn/kv_a_norm", latent.keys});
  rows.matrix(Weight::k_up, Cut::heads_of_rows, latent.keys,
              {{"self_attn/k_b_proj", heads * (s.head_dim - latent.rope)}});
  rows.matrix(Weight::v_up, Cut::heads_of_rows, latent.keys,
              {{"self_attn/v_b_proj", heads * s.values_dim()}});
}

void add_attention(Rows& rows, const ModelShape& s, int layer) {
  rows.vector(Weight::attention_norm, Cut::none, {"input_layernorm", s.hidden});
  if (s.latent.used()) {
    add_latents(rows, s);
  } else {
    add_projections(rows, s, layer);
  }
  rows.matrix(Weight::o, Cut::heads_of_columns, s.heads_width(), {{"self_attn/o_proj", s.hidden}});
  if (s.output_bias) {
    rows.bias(Weight::output_bias, Cut::output_rows, {{"self_attn/o_proj", s.hidden}});
  }
  if (s.qk_norm != QkNorm::none) {
    const bool whole = s.qk_norm == QkNorm::whole_row;
    const Cut cut = whole ? Cut::heads_of_rows : Cut::none;
    rows.vector(Weight::q_norm, cut, {"self_attn/q_norm", whole ? s.q_width() : s.head_dim});
    rows.vector(Weight::k_norm, cut, {"self_attn/k_norm", whole ? s.kv_width() : s.head_dim});
  }
  if (s.attention(layer).sinks) {
    rows.vector(Weight::sinks, Cut::heads_of_rows, {"self_attn/sinks", s.num_heads});
  }
}

void add_shared_expert(Rows& rows, const ModelShape& s) {
  const std::int64_t inner = s.shared_intermediate;
  if (s.activation != Activation::gelu_tanh) {
    rows.matrix(Weight::shared_gate, Cut::none, s.hidden, {{"mlp/shared_expert/gate_proj", inner}});
  }
  rows.matrix(Weight::shared_up, Cut::none, s.hidden, {{"mlp/shared_expert/up_proj", inner}});
  rows.matrix(Weight::shared_down, Cut::none, inner, {{"mlp/shared_expert/down_proj", s.hidden}});
  if (s.shared_gate) {
    rows.matrix(Weight::shared_router, Cut::none, s.hidden, {{"mlp/shared_expert_gate", 1}});
  }
}

void add_layer(std::vector<WeightInfo>& table, const ModelShape& s, int layer) {
  Rows rows(table, layer, fmt::format("/model/layers/{}/", layer));
  add_attention(rows, s, layer);
  rows.vector(Weight::ffn_norm, Cut::none, {"post_attention_layernorm", s.hidden});
  if (s.is_dense(layer)) return rows.mlp(s, s.intermediate, "mlp/");
  rows.matrix(Weight::router, Cut::none, s.hidden, {{"mlp/gate", s.num_experts}});
  if (s.router.logit_bias) rows.bias(Weight::router_bias, Cut::none, {{"mlp/gate", s.num_experts}});
  if (s.router.selection_bias) {
    rows.bias(Weight::selection_bias, Cut::none, {{"mlp/gate/selection", s.num_experts}});
  }
  rows.mlp(s, s.moe_intermediate, "mlp/experts/");
  if (s.has_shared_expert()) add_shared_expert(rows, s);
}

/// Query heads of member `place` by the KV heads that they read.
std::vector<HeadGroup> groups_of(const ModelShape& shape, int num_kv_heads, int members,
                                 int place) {
  std::vector<HeadGroup> groups;
  const int group = shape.num_heads / num_kv_heads;
  const int end = shape.num_heads / members * (place + 1);
  for (int head = shape.num_heads / members * place; head < end;) {
    const int kv_head = head / group;
    const int count = std::min(end, (kv_head + 1) * group) - head;
    groups.push_back({kv_head, head, count});
    head += count;
  }
  return groups;
}

}  // namespace

const char* name_of(Weight weight) {
  return weight_names[static_cast<std::size_t>(weight)];
}

std::string_view name_of(OutputCut cut) {
  switch (cut) {
    case OutputCut::rows:
      return "rows";
    case OutputCut::columns:
      return "columns";
    case OutputCut::either:
      return "either";
    case OutputCut::sum:
      return "sum";
    case OutputCut::sum_bf16:
      return "sum-bf16";
  }
  return "?";
}

bool is_float32_on_file(Weight weight, Use use) {
  return use == Use::vector || weight == Weight::router;
}

std::vector<WeightInfo> weights_of(const ModelShape& shape) {
  std::vector<WeightInfo> table;
  const std::int64_t hidden = shape.hidden;
  Rows top(table, -1, "/");
  top.matrix(Weight::embedding, Cut::none, hidden, {{"model/embed_tokens", shape.vocab}});
  for (int layer = 0; layer < shape.num_layers; ++layer) add_layer(table, shape, layer);
  top.vector(Weight::final_norm, Cut::none, {"model/norm", hidden});
  top.matrix(Weight::lm_head, Cut::none, hidden, {{"lm_head", shape.vocab}});
  for (WeightInfo& info : table) info.coding = shape.coding(info.id, info.layer);
  return table;
}

std::string scales_path(const std::string& path) {
  return path.substr(0, path.rfind('/')) + "/scales";
}

bool may_be_coded(Weight weight) {
  switch (weight) {
    case Weight::qkv:
    case Weight::o:
    case Weight::q_up:
    case Weight::gate:
    case Weight::up:
    case Weight::down:
    case Weight::shared_gate:
    case Weight::shared_up:
    case Weight::shared_down:
      return true;
    default:
      return false;
  }
}

namespace {
OwnHeads counted(const ModelShape& shape, std::vector<HeadGroup> groups) {
  OwnHeads own;
  own.groups = std::move(groups);
  own.head_dim = shape.head_dim;
  own.value_dim = shape.values_dim();
  if (shape.latent.used()) own.latent_width = shape.latent.width();
  for (const HeadGroup& group : own.groups) {
    own.num_heads += group.num_heads;
    own.most_in_group = std::max(own.most_in_group, group.num_heads);
  }
  return own;
}
}  // namespace

OwnHeads own_heads(const ModelShape& shape, const AttentionShare& share, int layer) {
  return counted(shape,
                 groups_of(shape, shape.attention(layer).num_kv_heads, share.members, share.place));
}

OwnHeads own_heads(const ModelShape& shape, const AttentionShare& share) {
  return counted(shape, groups_of(shape, shape.num_kv_heads, share.members, share.place));
}

AttentionShare share_attention(const ModelShape& shape, int members, int place, OutputCut output) {
  require(members >= 1 && place >= 0 && place < members,
          "there is no member {} of {} that share attention", place, members);
  require(shape.num_heads % members == 0,
          "cannot share {} query heads among {} ranks (not a divisor); choose another --tp",
          shape.num_heads, members);
  const bool by_columns = output == OutputCut::columns || output == OutputCut::either;
  require(!by_columns || shape.hidden % members == 0,
          "cannot cut {} columns of the output projection among {} ranks (not a divisor); choose "
          "another --tp",
          shape.hidden, members);
  AttentionShare share;
  share.members = members;
  share.place = place;
  share.output = output;
  if (members == 1) return share;
  share.heads = groups_of(shape, shape.num_kv_heads, members, place);
  return share;
}

int AttentionShare::sums_per_member(const ModelShape& shape) const {
  int most = 0;
  for (int member = 0; member < members; ++member) {
    const AttentionShare share = share_attention(shape, members, member, OutputCut::rows);
    const OwnHeads own = own_heads(shape, share);
    most = std::max(most, own.num_heads + own.num_kv_heads());
  }
  return most;
}

ExpertShare share_experts(const ModelShape& shape, int members, int place) {
  require(members >= 1 && place >= 0 && place < members,
          "there is no member {} of {} that share experts", place, members);
  require(shape.moe_intermediate % members == 0 && shape.hidden % members == 0,
          "cannot cut experts of {} inner columns and {} output columns among {} ranks (not a "
          "divisor); choose another --expert-tp",
          shape.moe_intermediate, shape.hidden, members);
  return {members, place};
}

std::int64_t Part::most_experts() const {
  std::size_t most = 0;
  for (const auto& of_layer : experts) most = std::max(most, of_layer.size());
  return static_cast<std::int64_t>(most);
}

void Part::place_experts(int layer, std::span<const std::int32_t> to, const ExpertPlaces& at) {
  auto& own = experts[static_cast<std::size_t>(layer)];
  ExpertPlaces& seen =
      places[static_cast<std::size_t>(places_of_layer[static_cast<std::size_t>(layer)])];
  require(own.size() == to.size() && seen.num_places() == at.num_places(),
          "internal: layer {} had {} experts here and {} places, and is to have {} and {}", layer,
          own.size(), seen.num_places(), to.size(), at.num_places());
  own.assign(to.begin(), to.end());
  seen = at;
}

int Part::most_places() const {
  int most = 0;
  for (const ExpertPlaces& kind : places) most = std::max(most, kind.num_places());
  return most;
}

Part whole_model(const ModelShape& shape) {
  Part part;
  part.end_layer = shape.num_layers;
  std::vector<std::int32_t> all(static_cast<std::size_t>(shape.num_experts));
  std::iota(all.begin(), all.end(), 0);
  ExpertPlaces places;
  for (const std::int32_t expert : all) {
    places.first_of_expert.push_back(expert);
    places.replicas.push_back({expert, 0, Distance::own_rank});
  }
  places.first_of_expert.push_back(shape.num_experts);
  places.first_of_node = {0, shape.num_experts};
  if (shape.num_experts > 0) part.places.push_back(std::move(places));
  part.experts.resize(static_cast<std::size_t>(shape.num_layers));
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    part.places_of_layer.push_back(shape.is_dense(layer) ? -1 : 0);
    if (!shape.is_dense(layer)) part.experts[static_cast<std::size_t>(layer)] = all;
  }
  return part;
}

bool has_weight(const ModelShape& shape, const Part& part, const WeightInfo& weight) {
  if (weight.id == Weight::embedding) return part.first_layer == 0;
  if (weight.layer == -1) return part.end_layer == shape.num_layers;
  return part.has_layer(weight.layer);
}

}  // namespace atl::compute
