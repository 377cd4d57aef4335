#include "compute/weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

constexpr std::array<const char*, 13> weight_names = {
    "embedding", "attention_norm", "qkv", "o",    "q_norm",     "k_norm", "ffn_norm",
    "router",    "gate",           "up",  "down", "final_norm", "lm_head"};

/// Writes the rows of one layer, or of what is outside the layers.
class Rows {
 public:
  Rows(std::vector<WeightInfo>& table, int layer, std::string prefix)
      : table_(table), layer_(layer), prefix_(std::move(prefix)) {}

  void vector(Weight id, Cut cut, Dataset dataset) {
    add(id, Use::vector, cut, 1, {std::move(dataset)});
  }
  void matrix(Weight id, Cut cut, std::int64_t cols, std::vector<Dataset> datasets) {
    add(id, Use::matrix, cut, cols, std::move(datasets));
  }
  /// A dense MLP's matrices, or those of each expert.
  void mlp(const ModelShape& s, std::int64_t inner, const std::string& prefix) {
    const std::size_t first = table_.size();
    if (s.activation == Activation::swiglu) {
      matrix(Weight::gate, Cut::inner_rows, s.hidden, {{prefix + "gate_proj", inner}});
    }
    matrix(Weight::up, Cut::inner_rows, s.hidden, {{prefix + "up_proj", inner}});
    matrix(Weight::down, Cut::inner_columns, inner, {{prefix + "down_proj", s.hidden}});
    const bool per_expert = !s.is_dense(layer_);
    for (std::size_t i = first; i < table_.size(); ++i) table_[i].per_expert = per_expert;
  }

 private:
  void add(Weight id, Use use, Cut cut, std::int64_t cols, std::vector<Dataset> datasets) {
    WeightInfo info{id, layer_, false, use, cut, 0, cols, std::move(datasets)};
    for (Dataset& dataset : info.datasets) {
      dataset.path = prefix_ + dataset.path + "/weight";
      info.rows += dataset.rows;
    }
    table_.push_back(std::move(info));
  }

  std::vector<WeightInfo>& table_;
  int layer_;
  std::string prefix_;
};

void add_layer(std::vector<WeightInfo>& table, const ModelShape& s, int layer) {
  Rows rows(table, layer, fmt::format("/model/layers/{}/", layer));
  rows.vector(Weight::attention_norm, Cut::none, {"input_layernorm", s.hidden});
  rows.matrix(Weight::qkv, Cut::heads_of_rows, s.hidden,
              {{"self_attn/q_proj", s.q_width()},
               {"self_attn/k_proj", s.kv_width()},
               {"self_attn/v_proj", s.kv_width()}});
  rows.matrix(Weight::o, Cut::heads_of_columns, s.q_width(), {{"self_attn/o_proj", s.hidden}});
  if (s.qk_norm != QkNorm::none) {
    const bool whole = s.qk_norm == QkNorm::whole_row;
    const Cut cut = whole ? Cut::heads_of_rows : Cut::none;
    rows.vector(Weight::q_norm, cut, {"self_attn/q_norm", whole ? s.q_width() : s.head_dim});
    rows.vector(Weight::k_norm, cut, {"self_attn/k_norm", whole ? s.kv_width() : s.head_dim});
  }
  rows.vector(Weight::ffn_norm, Cut::none, {"post_attention_layernorm", s.hidden});
  if (s.is_dense(layer)) {
    rows.mlp(s, s.intermediate, "mlp/");
  } else {
    rows.matrix(Weight::router, Cut::none, s.hidden, {{"mlp/gate", s.num_experts}});
    rows.mlp(s, s.moe_intermediate, "mlp/experts/");
  }
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

std::vector<WeightInfo> weights_of(const ModelShape& shape) {
  std::vector<WeightInfo> table;
  const std::int64_t hidden = shape.hidden;
  Rows top(table, -1, "/");
  top.matrix(Weight::embedding, Cut::none, hidden, {{"model/embed_tokens", shape.vocab}});
  for (int layer = 0; layer < shape.num_layers; ++layer) add_layer(table, shape, layer);
  top.vector(Weight::final_norm, Cut::none, {"model/norm", hidden});
  top.matrix(Weight::lm_head, Cut::none, hidden, {{"lm_head", shape.vocab}});
  return table;
}

OwnHeads own_heads(const ModelShape& shape, const AttentionShare& share) {
  OwnHeads own;
  own.groups = share.heads;
  own.head_dim = shape.head_dim;
  if (own.groups.empty()) {
    const int group = shape.num_heads / shape.num_kv_heads;
    for (int kv = 0; kv < shape.num_kv_heads; ++kv) own.groups.push_back({kv, kv * group, group});
  }
  for (const HeadGroup& group : own.groups) {
    own.num_heads += group.num_heads;
    own.most_in_group = std::max(own.most_in_group, group.num_heads);
  }
  return own;
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
  const int group = shape.num_heads / shape.num_kv_heads;
  const int end = shape.num_heads / members * (place + 1);
  for (int head = shape.num_heads / members * place; head < end;) {
    const int kv_head = head / group;
    const int count = std::min(end, (kv_head + 1) * group) - head;
    share.heads.push_back({kv_head, head, count});
    head += count;
  }
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
