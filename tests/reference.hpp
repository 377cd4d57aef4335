#pragma once
// The oracle: the whole model in plain float64 loops. Everything Atoll computes is measured against
// this file, so it favours being obviously right over anything else.
//
// `round` is applied wherever the program stores an activation in its own element type, which the
// residual stream is not: it is float32, and what is added to it is rounded. With `exact` one gets
// the true values, with `to_bfloat16` or `to_float16` what rounding alone does.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "compute/types.hpp"

namespace atl::reference {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;  // rows
using Round = double (*)(double);

inline double exact(double value) {
  return value;
}

/// Rounds to a float with `bits` bits of significand and exponents from `lowest`, ties to even.
inline double round_significand(double value, int bits, int lowest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), lowest);
  const double unit = std::ldexp(1.0, exponent - bits + 1);
  return std::nearbyint(value / unit) * unit;
}
inline double to_bfloat16(double value) {
  return round_significand(value, 8, -126);
}
inline double to_float16(double value) {
  return round_significand(value, 11, -14);
}

struct Mlp {
  Matrix up, gate, down;                       // [I, H], [I, H] (swiglu only), [H, I]
  Vector up_bias{}, gate_bias{}, down_bias{};  // empty where there are none
};

struct Layer {
  Vector attention_norm, ffn_norm;  // [H]
  Vector q_norm, k_norm;            // by QkNorm
  Matrix qkv;                       // [(heads + 2 kv_heads) * head_dim, H]
  Matrix o;                         // [H, heads * head_dim]
  Matrix router;                    // [num_experts, H]
  Mlp dense;
  std::vector<Mlp> experts;
  // Of some models only, see ModelShape; else empty:
  Vector qkv_bias, output_bias;
  Vector sinks;                        // [heads]
  Vector router_bias, selection_bias;  // [num_experts]
  Mlp shared;
  Matrix shared_router;                  // [1, H]
  Vector q_latent_norm, kv_latent_norm;  // of the latents
  Matrix q_up;                           // [heads * head_dim, queries' latent]
  Matrix k_up, v_up;                     // [heads * .., latent]
};

struct Model {
  ModelShape shape;
  Matrix embedding;  // [vocab, H]
  std::vector<Layer> layers;
  Vector final_norm;
  Matrix lm_head;  // [vocab, H]
};

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline Vector multiply(const Matrix& matrix, const Vector& x) {
  Vector y;
  for (const Vector& row : matrix) y.push_back(dot(row, x));
  return y;
}

/// The same plus a bias, where there is one.
inline Vector multiply(const Matrix& matrix, const Vector& x, const Vector& bias) {
  Vector y = multiply(matrix, x);
  for (std::size_t i = 0; i < bias.size(); ++i) y[i] += bias[i];
  return y;
}

inline Vector rounded(Vector x, Round round) {
  for (double& value : x) value = round(value);
  return x;
}

inline void add_rounded(Vector& x, const Vector& y, Round round) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += round(y[i]);
}

/// x / sqrt(mean(x^2) + eps) * weight, not rounded.
inline Vector rms_norm(const Vector& x, const Vector& weight, double eps) {
  const double scale = 1 / std::sqrt(dot(x, x) / static_cast<double>(x.size()) + eps);
  Vector y;
  for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * weight[i]);
  return y;
}

/// Rotates pairs (i, i + dims / 2) of the `dims` dimensions from `first` on of every head.
inline void rope(Vector& heads, int head_dim, int first, int position, const Rope& rope) {
  const int half = rope.dims / 2;
  for (std::size_t head = 0; head < heads.size(); head += static_cast<std::size_t>(head_dim)) {
    for (int i = 0; i < half; ++i) {
      const double angle = position * rope.frequencies[static_cast<std::size_t>(i)];
      double& a = heads[head + static_cast<std::size_t>(first + i)];
      double& b = heads[head + static_cast<std::size_t>(first + i + half)];
      const double turned = rope.factor * (a * std::cos(angle) - b * std::sin(angle));
      b = rope.factor * (b * std::cos(angle) + a * std::sin(angle));
      a = turned;
    }
  }
}

/// Rotates pairs (i, i + head_dim / 2) of every head by position * theta^(-2i / head_dim).
inline void rope(Vector& heads, int head_dim, int position, double theta) {
  rope(heads, head_dim, 0, position, plain_rope(head_dim, theta));
}

/// Normalises (by QkNorm) and rotates q or k of one position.
inline Vector prepare_heads(Vector heads, const Vector& weight, int position,
                            const ModelShape& shape, int layer = 0) {
  const auto d = static_cast<std::ptrdiff_t>(shape.head_dim);
  const auto turn = [&] {
    const int kind = shape.attention(layer).rope;
    rope(heads, shape.head_dim, 0, position, shape.rope(static_cast<std::size_t>(kind)));
  };
  if (shape.norm_after_rope) turn();
  if (shape.qk_norm == QkNorm::whole_row) heads = rms_norm(heads, weight, shape.rms_eps);
  if (shape.qk_norm == QkNorm::per_head) {
    for (auto at = heads.begin(); at != heads.end(); at += d) {
      const Vector normed = rms_norm(Vector(at, at + d), weight, shape.rms_eps);
      std::copy(normed.begin(), normed.end(), at);
    }
  }
  if (!shape.norm_after_rope) turn();
  return heads;
}

/// softmax(x) in place.
inline void softmax(Vector& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - top);
  for (double& value : x) value /= sum;
}

/// Causal attention over positions 0..T-1 of one sequence, before o: [T, heads * values_dim].
inline Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, const ModelShape& shape,
                        const AttentionKind& kind, const Vector& sinks) {
  const auto d = static_cast<std::size_t>(shape.head_dim);
  const auto value_dim = static_cast<std::size_t>(shape.values_dim());
  const auto heads = static_cast<std::size_t>(shape.num_heads);
  const std::size_t group = heads / static_cast<std::size_t>(kind.num_kv_heads);
  Matrix out;
  for (std::size_t t = 0; t < q.size(); ++t) {
    Vector row(heads * value_dim, 0.0);
    const auto window = static_cast<std::size_t>(kind.window);
    const std::size_t first = window > 0 && t + 1 > window ? t + 1 - window : 0;
    for (std::size_t head = 0; head < heads; ++head) {
      Vector scores;
      for (std::size_t s = first; s <= t; ++s) {
        double score = 0;
        for (std::size_t i = 0; i < d; ++i)
          score += q[t][head * d + i] * k[s][head / group * d + i];
        scores.push_back(score * (shape.attention_scale > 0
                                      ? shape.attention_scale
                                      : 1 / std::sqrt(static_cast<double>(d))));
      }
      if (kind.sinks) scores.push_back(sinks[head]);
      softmax(scores);
      for (std::size_t s = first; s <= t; ++s) {
        for (std::size_t i = 0; i < value_dim; ++i) {
          row[head * value_dim + i] += scores[s - first] * v[s][head / group * value_dim + i];
        }
      }
    }
    out.push_back(row);
  }
  return out;
}
inline Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v,
                        const ModelShape& shape) {
  return attention(q, k, v, shape, {shape.num_kv_heads, 0, false, 0}, {});
}

/// Keys and values by heads, of one position.
struct Projected {
  Vector q, k, v;
};

inline Projected project(const Vector& h, const Layer& layer, const ModelShape& shape, int number,
                         int position, Round round) {
  const auto q_width = static_cast<std::ptrdiff_t>(shape.q_width());
  const auto k_width = static_cast<std::ptrdiff_t>(shape.attention(number).num_kv_heads) *
                       static_cast<std::ptrdiff_t>(shape.head_dim);
  const Vector qkv = rounded(multiply(layer.qkv, h, layer.qkv_bias), round);
  const auto k_begin = qkv.begin() + q_width;
  Projected result;
  result.q = rounded(
      prepare_heads(Vector(qkv.begin(), k_begin), layer.q_norm, position, shape, number), round);
  result.k = rounded(
      prepare_heads(Vector(k_begin, k_begin + k_width), layer.k_norm, position, shape, number),
      round);
  result.v = Vector(k_begin + k_width, qkv.end());
  for (double& value : result.v) value *= shape.value_scale;
  result.v = rounded(result.v, round);
  return result;
}

/// The same from latents: keys and values as a prompt token's attention expands them.
inline Projected project_latents(const Vector& h, const Layer& layer, const ModelShape& shape,
                                 int position, Round round) {
  const LatentAttention& latent = shape.latent;
  const Rope turns = shape.rope(0);
  const Vector down = rounded(multiply(layer.qkv, h, layer.qkv_bias), round);
  const auto queries =
      static_cast<std::ptrdiff_t>(latent.queries > 0 ? latent.queries : shape.q_width());
  Projected result;
  result.q = Vector(down.begin(), down.begin() + queries);
  if (latent.queries > 0) {
    const Vector normed = rounded(rms_norm(result.q, layer.q_latent_norm, latent.eps), round);
    result.q = rounded(multiply(layer.q_up, normed), round);
  }
  rope(result.q, shape.head_dim, shape.head_dim - latent.rope, position, turns);
  result.q = rounded(result.q, round);
  const int passed = position / shape.temperature.interval;
  if (shape.temperature.beta > 0 && passed > 0) {
    for (double& value : result.q) value *= 1 + shape.temperature.beta * std::log(1.0 + passed);
    result.q = rounded(result.q, round);
  }
  const auto keys = down.begin() + queries;
  const Vector kept =
      rounded(rms_norm(Vector(keys, keys + latent.keys), layer.kv_latent_norm, latent.eps), round);
  Vector turned(keys + latent.keys, down.end());
  rope(turned, latent.rope, 0, position, turns);
  turned = rounded(turned, round);
  const Vector expanded = rounded(multiply(layer.k_up, kept), round);
  const auto nope = static_cast<std::ptrdiff_t>(shape.head_dim - latent.rope);
  for (auto at = expanded.begin(); at != expanded.end(); at += nope) {
    result.k.insert(result.k.end(), at, at + nope);
    result.k.insert(result.k.end(), turned.begin(), turned.end());
  }
  result.v = rounded(multiply(layer.v_up, kept), round);
  return result;
}

/// x += Attention(RMSNorm(x)), of layer number `number`.
inline void attention_layer(Matrix& x, const Layer& layer, const ModelShape& shape, Round round,
                            int number = 0) {
  Matrix q, k, v;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const Vector h = rounded(rms_norm(x[t], layer.attention_norm, shape.rms_eps), round);
    const int position = static_cast<int>(t);
    const Projected row = shape.latent.used() ? project_latents(h, layer, shape, position, round)
                                              : project(h, layer, shape, number, position, round);
    q.push_back(row.q);
    k.push_back(row.k);
    v.push_back(row.v);
  }
  const Matrix context = attention(q, k, v, shape, shape.attention(number), layer.sinks);
  for (std::size_t t = 0; t < x.size(); ++t) {
    add_rounded(x[t], multiply(layer.o, rounded(context[t], round), layer.output_bias), round);
  }
}

/// down(activation(up(x), gate(x))); the result is not rounded.
inline Vector mlp(const Mlp& weights, const Vector& x, const ModelShape& shape, Round round) {
  Vector inner = multiply(weights.up, x, weights.up_bias);
  if (shape.activation == Activation::gelu_tanh) {
    for (double& u : inner) {
      const double t = std::tanh(std::sqrt(2 / std::acos(-1.0)) * (u + 0.044715 * u * u * u));
      u = round(0.5 * u * (1 + t));
    }
  } else {
    const Vector gate = multiply(weights.gate, x, weights.gate_bias);
    const double limit = shape.clamp_limit;
    for (std::size_t i = 0; i < inner.size(); ++i) {
      if (shape.activation == Activation::swiglu) {
        inner[i] = round(gate[i] / (1 + std::exp(-gate[i])) * round(inner[i]));
        continue;
      }
      const double g = std::min(gate[i], limit);
      const double u = std::clamp(round(inner[i]), -limit, limit);
      inner[i] = round((u + 1) * g / (1 + std::exp(-shape.clamp_alpha * g)));
    }
  }
  return multiply(weights.down, inner, weights.down_bias);
}
inline Vector mlp(const Mlp& weights, const Vector& x, Activation activation, Round round) {
  ModelShape shape;
  shape.activation = activation;
  return mlp(weights, x, shape, round);
}

struct Choice {
  int expert;
  double weight;
};
using Choices = std::vector<Choice>;                // of one token, in the order of their sum
using Routing = std::vector<std::vector<Choices>>;  // [layers][tokens], empty in dense layers

/// Choices that take the router's place. With `own_weights` they are summed with the weights that
/// stand there, else with those that the router would give these experts.
struct Forced {
  Routing choices;
  bool own_weights = true;
};

/// Scores of all experts; by softmax_of_chosen, logits.
inline Vector scores_of(const Matrix& router, const Vector& bias, const Vector& h,
                        const ModelShape& shape) {
  Vector scores = multiply(router, h, bias);
  if (shape.router.score == RouterScore::softmax) softmax(scores);
  if (shape.router.score == RouterScore::sigmoid) {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
  }
  return scores;
}

/// Indices of the `count` largest values, in falling order, ties to the lower index.
inline std::vector<std::size_t> best(const Vector& values, int count) {
  std::vector<std::size_t> order(values.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

/// What experts are chosen by: scores plus offsets, nothing outside the best groups.
inline Vector choices_by(Vector scores, const Vector& offsets, const ModelShape& shape) {
  for (std::size_t e = 0; e < offsets.size(); ++e) scores[e] += offsets[e];
  const auto groups = static_cast<std::size_t>(shape.router.groups);
  if (groups == 1) return scores;
  const std::size_t size = scores.size() / groups;
  Vector of_group;
  for (std::size_t g = 0; g < groups; ++g) {
    const auto first = scores.begin() + static_cast<std::ptrdiff_t>(g * size);
    Vector members(first, first + static_cast<std::ptrdiff_t>(size));
    std::sort(members.rbegin(), members.rend());
    const bool two = shape.router.group_score == GroupScore::two_best && size > 1;
    of_group.push_back(members[0] + (two ? members[1] : 0));
  }
  const auto kept = best(of_group, shape.router.top_groups);
  for (std::size_t e = 0; e < scores.size(); ++e) {
    if (std::find(kept.begin(), kept.end(), e / size) == kept.end()) {
      scores[e] = -std::numeric_limits<double>::infinity();
    }
  }
  return scores;
}

/// Gives choices their weights.
inline void weigh(Choices& choices, const Vector& scores, const ModelShape& shape) {
  Vector weights;
  for (const Choice& choice : choices) {
    weights.push_back(scores[static_cast<std::size_t>(choice.expert)]);
  }
  if (shape.router.score == RouterScore::softmax_of_chosen) {
    softmax(weights);
  } else {
    double sum = 0;
    for (const double weight : weights) sum += weight;
    sum = std::max(sum, static_cast<double>(shape.router.normalise_floor));
    for (double& weight : weights) {
      weight = weight / (shape.norm_topk_prob ? sum : 1.0) * shape.router.scale;
    }
  }
  for (std::size_t i = 0; i < choices.size(); ++i) choices[i].weight = weights[i];
}

/// The chosen experts of one token, in falling order of what they were chosen by, ties to the lower
/// index.
inline Choices route(const Matrix& router, const Vector& h, const ModelShape& shape,
                     const Vector& bias = {}, const Vector& offsets = {}) {
  const Vector scores = scores_of(router, bias, h, shape);
  Choices choices;
  for (const std::size_t expert : best(choices_by(scores, offsets, shape), shape.top_k)) {
    choices.push_back({static_cast<int>(expert), 0});
  }
  weigh(choices, scores, shape);
  return choices;
}

/// The same of experts that are given, in their order.
inline Choices route_forced(const Matrix& router, const Vector& h, const ModelShape& shape,
                            Choices choices, const Vector& bias = {}) {
  weigh(choices, scores_of(router, bias, h, shape), shape);
  return choices;
}

/// x += SharedExpert(h), weighted where the model does so.
inline void add_shared(Vector& x, const Vector& h, const Layer& layer, const ModelShape& shape,
                       Round round) {
  Vector y = mlp(layer.shared, h, shape, round);
  if (shape.shared_gate) {
    y = rounded(y, round);
    const double weight = 1 / (1 + std::exp(-dot(layer.shared_router[0], h)));
    for (double& value : y) value *= weight;
  }
  add_rounded(x, y, round);
}

/// x += Ffn(RMSNorm(x)), dense or mixture of experts. Layer number `number` of `forced`, where that
/// is given; what was chosen is added to `routed`, where that is given.
inline void ffn_layer(Matrix& x, const Layer& layer, bool dense, const ModelShape& shape,
                      Round round, std::size_t number = 0, const Forced* forced = nullptr,
                      Routing* routed = nullptr) {
  for (std::size_t t = 0; t < x.size(); ++t) {
    Vector& row = x[t];
    const Vector h = rounded(rms_norm(row, layer.ffn_norm, shape.rms_eps), round);
    Vector result(row.size(), 0.0);
    if (dense) {
      result = mlp(layer.dense, h, shape, round);
    } else {
      Choices choices;
      if (forced == nullptr) {
        choices = route(layer.router, h, shape, layer.router_bias, layer.selection_bias);
      } else {
        choices = forced->choices[number][t];
        if (!forced->own_weights) {
          choices = route_forced(layer.router, h, shape, choices, layer.router_bias);
        }
      }
      if (routed != nullptr) (*routed)[number].push_back(choices);
      for (const Choice& choice : choices) {
        const Mlp& expert = layer.experts[static_cast<std::size_t>(choice.expert)];
        const Vector y = rounded(mlp(expert, h, shape, round), round);
        for (std::size_t i = 0; i < y.size(); ++i) result[i] += choice.weight * y[i];
      }
      if (shape.has_shared_expert()) add_shared(row, h, layer, shape, round);
    }
    add_rounded(row, result, round);
  }
}

/// Logits [T, vocab] of one sequence; `forced` and `routed` as in ffn_layer.
inline Matrix logits(const Model& model, const std::vector<std::int32_t>& tokens,
                     Round round = exact, const Forced* forced = nullptr,
                     Routing* routed = nullptr) {
  const ModelShape& shape = model.shape;
  Matrix x;
  for (const std::int32_t token : tokens) {
    x.push_back(rounded(model.embedding[static_cast<std::size_t>(token)], round));
    for (double& value : x.back()) value *= shape.embedding_scale;
  }
  if (routed != nullptr) routed->assign(model.layers.size(), {});
  for (int l = 0; l < shape.num_layers; ++l) {
    const auto number = static_cast<std::size_t>(l);
    const Layer& layer = model.layers[number];
    attention_layer(x, layer, shape, round, l);
    ffn_layer(x, layer, shape.is_dense(l), shape, round, number, forced, routed);
  }
  for (Vector& row : x) {
    row = multiply(model.lm_head, rounded(rms_norm(row, model.final_norm, shape.rms_eps), round));
  }
  return x;
}

/// log softmax of logits, each row.
inline Matrix log_probs(const Model& model, const std::vector<std::int32_t>& tokens,
                        Round round = exact, const Forced* forced = nullptr) {
  Matrix result = logits(model, tokens, round, forced);
  for (Vector& row : result) {
    const double top = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double value : row) sum += std::exp(value - top);
    for (double& value : row) value -= top + std::log(sum);
  }
  return result;
}

}  // namespace atl::reference
