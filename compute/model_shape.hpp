#pragma once
// The numbers that shape a model's arithmetic. Families of models are known to the importer alone;
// here a model is a few kinds of layers, and for each layer which kind it is.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "compute/coding.hpp"

namespace atl {

namespace compute {
enum class Weight : std::uint8_t;
}

enum class Activation : std::uint8_t {
  gelu_tanh,  ///< down(gelu(up(x))), gelu in its tanh form
  swiglu,     ///< down(silu(gate(x)) * up(x))
  /// down((u + 1) * g * sigmoid(alpha * g)) with g = min(gate(x), limit) and u = up(x) between
  /// -limit and limit, which experts of gpt-oss have
  swiglu_clamped,
};

/// Over what q and k are RMS-normalised.
enum class QkNorm : std::uint8_t {
  none,
  per_head,   ///< over head_dim, weight [head_dim] (Qwen3)
  whole_row,  ///< over heads * head_dim, weight [heads * head_dim] (OLMoE)
};

/// How a position turns a head: pair (i, i + dims / 2) of its first `dims` dimensions by the angle
/// position * frequencies[i]. Cosines and sines are multiplied by `factor` (yarn).
struct Rope {
  int dims = 0;
  double factor = 1;
  std::vector<double> frequencies;  ///< [dims / 2], radians per position

  bool operator==(const Rope&) const = default;
};

/// frequencies[i] = theta^(-2i / dims).
inline Rope plain_rope(int dims, double theta) {
  Rope rope;
  rope.dims = dims;
  for (int i = 0; i < dims / 2; ++i) rope.frequencies.push_back(std::pow(theta, -2.0 * i / dims));
  return rope;
}

/// What layers of one model may differ in where they attend.
struct AttentionKind {
  int num_kv_heads = 0;
  int window = 0;      ///< keys that a token sees, itself included; 0: all before it
  bool sinks = false;  ///< a logit for each head joins the softmax's sum, and has no value
  int rope = 0;        ///< index into ModelShape::ropes

  bool operator==(const AttentionKind&) const = default;
};

/// Attention over latents (DeepSeek's): of a token only a latent, normalised, and one rotated key
/// for all heads are kept. A head's key is its `head_dim - rope` rows of k_up times the latent,
/// followed by the rotated key; its value is its rows of v_up times the latent. Prompt tokens
/// attend to expanded keys and values, generated ones to the latents themselves.
struct LatentAttention {
  int queries = 0;    ///< width of the queries' latent; 0: they are projected at once
  int keys = 0;       ///< width of the keys' latent; 0: attention is over keys and values
  int rope = 0;       ///< dimensions of the rotated key: the last ones of a head
  float eps = 1e-6F;  ///< of both latents' norms

  bool used() const { return keys > 0; }
  int width() const { return keys + rope; }  ///< of what is kept of a token
  bool operator==(const LatentAttention&) const = default;
};

/// Queries at later positions are multiplied by 1 + beta * log(1 + floor(position / interval)).
struct QueryTemperature {
  float beta = 0;  ///< 0: they are not
  int interval = 1;

  bool operator==(const QueryTemperature&) const = default;
};

/// How logits of a router become scores.
enum class RouterScore : std::uint8_t {
  softmax,
  sigmoid,
  softmax_of_chosen,  ///< experts are chosen by their logits; softmax over those chosen
};
/// What a group of experts is chosen by.
enum class GroupScore : std::uint8_t {
  best,      ///< its best expert's
  two_best,  ///< the sum of its two best
};

/// How a token chooses experts. Everything is float32: choices = scores + offsets; of the groups
/// the top ones stay; of their experts the top_k by choices, ties to the lower index; weights =
/// scores of these, normalised where norm_topk_prob, times scale.
struct Router {
  RouterScore score = RouterScore::softmax;
  bool logit_bias = false;      ///< a vector is added to the logits
  bool selection_bias = false;  ///< a vector is added to the scores, for choosing only
  int groups = 1;               ///< of experts that follow one another, equally many
  int top_groups = 1;           ///< whose experts can be chosen
  GroupScore group_score = GroupScore::best;
  float normalise_floor = 0;  ///< the sum that weights are divided by is at least this
  float scale = 1;

  bool operator==(const Router&) const = default;
};

/// A matrix that layers of one kind keep as codes.
struct CodedWeight {
  compute::Weight weight{};
  Coding coding;

  bool operator==(const CodedWeight&) const = default;
};

/// All numbers the arithmetic of one model needs. `T` is a count of tokens, `H` is `hidden`.
struct ModelShape {
  int hidden = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;      ///< in the kind of layer with most
  int head_dim = 0;          ///< of queries and keys
  int intermediate = 0;      ///< hidden width of a dense MLP
  int moe_intermediate = 0;  ///< hidden width of one expert
  int num_experts = 0;
  int top_k = 0;
  int vocab = 0;
  int max_positions = 0;
  bool norm_topk_prob = true;
  Activation activation = Activation::swiglu;
  QkNorm qk_norm = QkNorm::none;
  float rms_eps = 1e-6F;
  double rope_theta = 10000.0;       ///< without `ropes`
  std::vector<bool> layer_is_dense;  ///< [num_layers]

  // Beyond what files of version 1 describe:
  int value_dim = 0;                       ///< of values; 0: head_dim
  std::vector<AttentionKind> attentions;   ///< empty: one, over all positions
  std::vector<std::uint8_t> attention_of;  ///< [num_layers], into `attentions`
  std::vector<Rope> ropes;                 ///< empty: one, plain_rope(head_dim, rope_theta)
  LatentAttention latent;
  bool norm_after_rope = false;  ///< by QkNorm::per_head
  bool qkv_bias = false;
  bool output_bias = false;   ///< of attention's output projection
  float attention_scale = 0;  ///< logits are q . k times this; 0: 1 / sqrt(head_dim)
  float value_scale = 1;
  QueryTemperature temperature;
  Router router;
  bool expert_bias = false;  ///< vectors are added to gate, up and down of experts
  float clamp_limit = 7;     ///< of Activation::swiglu_clamped
  float clamp_alpha = 1.702F;
  int shared_intermediate = 0;  ///< width of an MLP for every token beside its experts; 0: none
  bool shared_gate = false;     ///< its result is multiplied by sigmoid(a row . h)
  float embedding_scale = 1;
  int index_top_k = 0;  ///< attention selects so many keys where there are more, which is not
                        ///< supported: max_positions is not above it; 0: it selects none

  // What is kept as codes, which changes no result:
  std::vector<std::vector<CodedWeight>> codings;  ///< kinds of layers; empty: nothing is
  std::vector<std::uint8_t> coding_of;            ///< [num_layers], into `codings`

  bool is_dense(int layer) const { return layer_is_dense[static_cast<std::size_t>(layer)]; }
  int values_dim() const { return value_dim > 0 ? value_dim : head_dim; }
  int q_width() const { return num_heads * head_dim; }
  int kv_width() const { return num_kv_heads * head_dim; }
  int heads_width() const { return num_heads * values_dim(); }  ///< of what attention gives
  bool has_shared_expert() const { return shared_intermediate > 0; }

  AttentionKind attention(int layer) const {
    if (attentions.empty()) return {num_kv_heads, 0, false, 0};
    return attentions[attention_of[static_cast<std::size_t>(layer)]];
  }
  /// Of a weight of this layer.
  Coding coding(compute::Weight weight, int layer) const {
    if (codings.empty() || layer < 0) return {};
    for (const CodedWeight& one : codings[coding_of[static_cast<std::size_t>(layer)]]) {
      if (one.weight == weight) return one.coding;
    }
    return {};
  }
  std::size_t num_ropes() const { return ropes.empty() ? 1 : ropes.size(); }
  Rope rope(std::size_t index) const {
    return ropes.empty() ? plain_rope(head_dim, rope_theta) : ropes[index];
  }
  float logit_scale() const {
    return attention_scale > 0 ? attention_scale : 1.0F / std::sqrt(static_cast<float>(head_dim));
  }
};

/// Whether a file of version 1 can describe the model: everything beyond is as if it were not
/// there.
bool is_plain(const ModelShape& shape);

}  // namespace atl
