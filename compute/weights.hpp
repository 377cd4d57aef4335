#pragma once
// Every tensor of a model, in one table: model files, import, init, loading, memory plans and both
// backends go through it. A new tensor is one more row of weights_of.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "compute/expert_places.hpp"
#include "compute/types.hpp"

namespace atl::compute {

/// The tensors of a model, as a backend receives them.
enum class Weight : std::uint8_t {
  embedding,
  attention_norm,
  qkv,  ///< rows of q, then k, then v; or of q or its latent, then the keys' latent and rotated key
  o,
  q_norm,
  k_norm,
  ffn_norm,
  router,
  gate,  ///< swiglu only
  up,
  down,
  final_norm,
  lm_head,
  // Of some models only, see ModelShape:
  qkv_bias,
  output_bias,
  sinks,           ///< [heads]
  router_bias,     ///< [experts], to the logits
  selection_bias,  ///< [experts], to the scores, for choosing
  gate_bias,
  up_bias,
  down_bias,
  shared_gate,  ///< of the MLP beside the experts
  shared_up,
  shared_down,
  shared_router,  ///< [1, H], what it is weighted by
  q_latent_norm,
  q_up,  ///< queries from their latent; without one they are in qkv
  kv_latent_norm,
  k_up,  ///< [heads * (head_dim - rope), latent]
  v_up,  ///< [heads * values_dim, latent]
};
const char* name_of(Weight weight);

enum class Use : std::uint8_t {
  matrix,  ///< [out, in], kept in the activations' type or as a GEMM wants it
  vector,  ///< one column, kept in float32
};

/// Along what a weight is cut where several ranks share attention, or an MLP.
enum class Cut : std::uint8_t {
  none,
  heads_of_rows,
  heads_of_columns,
  output_rows,  ///< as the rows of heads_of_columns
  inner_rows,
  inner_columns,
};

/// A dataset of the model file: [rows, cols] of its weight, or [rows] for a vector; with
/// [num_experts] before them for a weight that each expert has.
struct Dataset {
  std::string path;  ///< e.g. "/model/layers/3/mlp/experts/up_proj/weight"
  std::int64_t rows = 0;
};

/// Whether files of models that version 1 does not describe have a weight in float32.
bool is_float32_on_file(Weight weight, Use use);

/// One row of the table.
struct WeightInfo {
  Weight id = Weight::embedding;
  int layer = -1;           ///< -1 outside the layers
  bool per_expert = false;  ///< each expert of the layer has one
  Use use = Use::matrix;
  Cut cut = Cut::none;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<Dataset> datasets;  ///< one under the other: together they have `rows`
  Coding coding{};                ///< then each dataset of codes has one of scales_path()

  std::int64_t num_elements() const { return rows * cols; }
};

/// The dataset of the scales of a dataset of codes.
std::string scales_path(const std::string& path);

/// Whether a weight may be kept as codes: the matrices that a layer's rows are multiplied by, but
/// the router and those that latent attention uses by heads.
bool may_be_coded(Weight weight);

/// Every weight of the model, in the order of the model file.
std::vector<WeightInfo> weights_of(const ModelShape& shape);

/// Query heads that read one KV head, of those a rank has.
struct HeadGroup {
  std::int32_t kv_head = 0;     ///< by its number in the model
  std::int32_t first_head = 0;  ///< likewise; the others follow
  std::int32_t num_heads = 0;

  bool operator==(const HeadGroup&) const = default;
};

/// What the ranks that share attention do with its output projection.
enum class OutputCut : std::uint8_t {
  rows,      ///< each has all of it, and projects its own rows
  columns,   ///< each has some columns of the result, and projects all rows to them
  either,    ///< each has all of it, and a pass goes by rows or by columns
  sum,       ///< each has the columns of its own heads; float32 rows are added up, so bits differ
  sum_bf16,  ///< the same, with rows rounded to the activations' type, bfloat16, before they travel
};
/// Whether members' rows are added up.
inline bool is_sum(OutputCut cut) {
  return cut == OutputCut::sum || cut == OutputCut::sum_bf16;
}

std::string_view name_of(OutputCut cut);

/// A rank's share of attention: some heads, of the rows of all members. Of a chunk's `all` rows
/// member m owns [all * m / members, all * (m + 1) / members): its residual stream has only these.
struct AttentionShare {
  int members = 1;
  int place = 0;
  OutputCut output = OutputCut::columns;
  std::vector<HeadGroup> heads;  ///< of this rank, in rising order; empty: all, members is 1

  bool shared() const { return members > 1; }
  /// What a pass goes by unless it is told.
  OutputCut usual_output() const {
    return output == OutputCut::either ? OutputCut::columns : output;
  }
  /// Numbers of a row in Chunk::head_sums: query heads and KV heads of the member with most.
  int sums_per_member(const ModelShape& shape) const;
};
/// The heads that a rank computes, counted.
struct OwnHeads {
  std::vector<HeadGroup> groups;  ///< one for each KV head that it keeps
  int num_heads = 0;              ///< query heads, which follow one another
  int most_in_group = 0;
  int head_dim = 0;
  int value_dim = 0;
  int latent_width = 0;  ///< of latent attention, in place of keys and values

  int first_head() const { return groups.front().first_head; }
  int num_kv_heads() const { return static_cast<int>(groups.size()); }
  int q_width() const { return num_heads * head_dim; }
  int kv_width() const { return num_kv_heads() * head_dim; }
  int heads_width() const { return num_heads * value_dim; }
  int qkv_width() const {
    return q_width() + (latent_width > 0 ? latent_width : num_kv_heads() * (head_dim + value_dim));
  }
};
/// In one layer; without one, in those with most KV heads.
OwnHeads own_heads(const ModelShape& shape, const AttentionShare& share, int layer);
OwnHeads own_heads(const ModelShape& shape, const AttentionShare& share);

/// Members have equal numbers of query heads, in order of place, and the KV heads that these read:
/// one may be with several members. Throws Error where heads, or hidden by OutputCut::columns or
/// either, do not divide.
AttentionShare share_attention(const ModelShape& shape, int members, int place, OutputCut output);

/// A rank's share of its experts where several ranks hold the same ones: of each expert's inner
/// columns, and of the columns of its results, those from [all * place / members] on. Members
/// compute with the rows that came to any of them.
struct ExpertShare {
  int members = 1;
  int place = 0;

  bool shared() const { return members > 1; }
};
/// Throws Error where an expert's inner columns, or hidden, do not divide.
ExpertShare share_experts(const ModelShape& shape, int members, int place);

/// What one rank has of a model: all that layout and placement tell a backend.
struct Part {
  int first_layer = 0;  ///< what comes before the layers (the embedding) is with the first one
  int end_layer = 0;    ///< what comes after them (final_norm, lm_head) is with the last one
  /// [num_layers]: the experts this rank holds, by local number; none in a dense layer.
  std::vector<std::vector<std::int32_t>> experts;
  std::vector<ExpertPlaces> places;           ///< where experts are, as this rank sees it
  std::vector<std::int32_t> places_of_layer;  ///< [num_layers], into `places`; -1: dense
  AttentionShare attention;
  ExpertShare expert_share;

  const ExpertPlaces& places_of(int layer) const {
    return places[static_cast<std::size_t>(places_of_layer[static_cast<std::size_t>(layer)])];
  }
  bool has_layer(int layer) const { return layer >= first_layer && layer < end_layer; }
  /// Other experts, and places that no other layer has; as many as before.
  void place_experts(int layer, std::span<const std::int32_t> to, const ExpertPlaces& at);
  int most_places() const;  ///< of a layer
  int num_nodes() const { return places.empty() ? 1 : places.front().num_nodes(); }

  /// In the layer with most of them.
  std::int64_t most_experts() const;
};

/// The part of a rank alone, which holds everything; rows are sent in the order of experts.
Part whole_model(const ModelShape& shape);

bool has_weight(const ModelShape& shape, const Part& part, const WeightInfo& weight);

/// Calls visit(info, expert, local_expert) for every weight that the part has, in the order of the
/// table; both numbers are -1 outside experts.
template <class Visit>
void for_each_weight(const ModelShape& shape, const Part& part, Visit&& visit) {
  for (const WeightInfo& info : weights_of(shape)) {
    if (!has_weight(shape, part, info)) continue;
    if (!info.per_expert) {
      visit(info, -1, -1);
      continue;
    }
    int local_expert = 0;
    for (const int expert : part.experts[static_cast<std::size_t>(info.layer)]) {
      visit(info, expert, local_expert++);
    }
  }
}

}  // namespace atl::compute
