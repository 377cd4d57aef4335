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
  Matrix up, gate, down;  // [I, H], [I, H] (swiglu only), [H, I]
};

struct Layer {
  Vector attention_norm, ffn_norm;  // [H]
  Vector q_norm, k_norm;            // by QkNorm
  Matrix qkv;                       // [(heads + 2 kv_heads) * head_dim, H]
  Matrix o;                         // [H, heads * head_dim]
  Matrix router;                    // [num_experts, H]
  Mlp dense;
  std::vector<Mlp> experts;
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

/// Rotates pairs (i, i + head_dim / 2) of every head by position * theta^(-2i / head_dim).
inline void rope(Vector& heads, int head_dim, int position, double theta) {
  const int half = head_dim / 2;
  for (std::size_t head = 0; head < heads.size(); head += static_cast<std::size_t>(head_dim)) {
    for (int i = 0; i < half; ++i) {
      const double angle = position * std::pow(theta, -2.0 * i / head_dim);
      double& a = heads[head + static_cast<std::size_t>(i)];
      double& b = heads[head + static_cast<std::size_t>(i + half)];
      const double first = a * std::cos(angle) - b * std::sin(angle);
      b = b * std::cos(angle) + a * std::sin(angle);
      a = first;
    }
  }
}

/// Normalises (by QkNorm) and rotates q or k of one position.
inline Vector prepare_heads(Vector heads, const Vector& weight, int position,
                            const ModelShape& shape) {
  const auto d = static_cast<std::ptrdiff_t>(shape.head_dim);
  if (shape.qk_norm == QkNorm::whole_row) heads = rms_norm(heads, weight, shape.rms_eps);
  if (shape.qk_norm == QkNorm::per_head) {
    for (auto at = heads.begin(); at != heads.end(); at += d) {
      const Vector normed = rms_norm(Vector(at, at + d), weight, shape.rms_eps);
      std::copy(normed.begin(), normed.end(), at);
    }
  }
  rope(heads, shape.head_dim, position, shape.rope_theta);
  return heads;
}

/// softmax(x) in place.
inline void softmax(Vector& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& value : x) sum += value = std::exp(value - top);
  for (double& value : x) value /= sum;
}

/// Causal attention over positions 0..T-1 of one sequence, before o: [T, heads * head_dim].
inline Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v,
                        const ModelShape& shape) {
  const auto d = static_cast<std::size_t>(shape.head_dim);
  const auto group = static_cast<std::size_t>(shape.num_heads / shape.num_kv_heads);
  Matrix out;
  for (std::size_t t = 0; t < q.size(); ++t) {
    Vector row(q[t].size(), 0.0);
    for (std::size_t head = 0; head < row.size() / d; ++head) {
      const std::size_t kv = head / group * d;
      Vector scores;
      for (std::size_t s = 0; s <= t; ++s) {
        double score = 0;
        for (std::size_t i = 0; i < d; ++i) score += q[t][head * d + i] * k[s][kv + i];
        scores.push_back(score / std::sqrt(static_cast<double>(d)));
      }
      softmax(scores);
      for (std::size_t s = 0; s <= t; ++s) {
        for (std::size_t i = 0; i < d; ++i) row[head * d + i] += scores[s] * v[s][kv + i];
      }
    }
    out.push_back(row);
  }
  return out;
}

/// x += Attention(RMSNorm(x)).
inline void attention_layer(Matrix& x, const Layer& layer, const ModelShape& shape, Round round) {
  const auto q_width = static_cast<std::ptrdiff_t>(shape.q_width());
  const auto kv_width = static_cast<std::ptrdiff_t>(shape.kv_width());
  Matrix q, k, v;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const Vector h = rounded(rms_norm(x[t], layer.attention_norm, shape.rms_eps), round);
    const Vector qkv = rounded(multiply(layer.qkv, h), round);
    const auto k_begin = qkv.begin() + q_width;
    const int position = static_cast<int>(t);
    q.push_back(
        rounded(prepare_heads(Vector(qkv.begin(), k_begin), layer.q_norm, position, shape), round));
    k.push_back(rounded(
        prepare_heads(Vector(k_begin, k_begin + kv_width), layer.k_norm, position, shape), round));
    v.emplace_back(k_begin + kv_width, qkv.end());
  }
  const Matrix context = attention(q, k, v, shape);
  for (std::size_t t = 0; t < x.size(); ++t) {
    add_rounded(x[t], multiply(layer.o, rounded(context[t], round)), round);
  }
}

/// down(gelu(up(x))) or down(silu(gate(x)) * up(x)); the result is not rounded.
inline Vector mlp(const Mlp& weights, const Vector& x, Activation activation, Round round) {
  Vector inner = multiply(weights.up, x);
  if (activation == Activation::gelu_tanh) {
    for (double& u : inner) {
      const double t = std::tanh(std::sqrt(2 / std::acos(-1.0)) * (u + 0.044715 * u * u * u));
      u = round(0.5 * u * (1 + t));
    }
  } else {
    const Vector gate = multiply(weights.gate, x);
    for (std::size_t i = 0; i < inner.size(); ++i) {
      inner[i] = round(gate[i] / (1 + std::exp(-gate[i])) * round(inner[i]));
    }
  }
  return multiply(weights.down, inner);
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

/// The chosen experts of one token, in order of falling weight, ties to the lower index.
inline Choices route(const Matrix& router, const Vector& h, const ModelShape& shape) {
  Vector probabilities = multiply(router, h);
  softmax(probabilities);
  Choices choices;
  for (std::size_t e = 0; e < probabilities.size(); ++e) {
    choices.push_back({static_cast<int>(e), probabilities[e]});
  }
  std::stable_sort(choices.begin(), choices.end(),
                   [](const Choice& a, const Choice& b) { return a.weight > b.weight; });
  choices.resize(static_cast<std::size_t>(shape.top_k));
  double sum = 0;
  for (const Choice& choice : choices) sum += choice.weight;
  for (Choice& choice : choices) choice.weight /= shape.norm_topk_prob ? sum : 1.0;
  return choices;
}

/// The same of experts that are given: the router's probabilities of these, in their order,
/// rescaled to sum 1 where the model does so with those it chooses itself.
inline Choices route_forced(const Matrix& router, const Vector& h, const ModelShape& shape,
                            Choices choices) {
  Vector probabilities = multiply(router, h);
  softmax(probabilities);
  double sum = 0;
  for (Choice& choice : choices) {
    choice.weight = probabilities[static_cast<std::size_t>(choice.expert)];
    sum += choice.weight;
  }
  for (Choice& choice : choices) choice.weight /= shape.norm_topk_prob ? sum : 1.0;
  return choices;
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
      result = mlp(layer.dense, h, shape.activation, round);
    } else {
      Choices choices;
      if (forced == nullptr) {
        choices = route(layer.router, h, shape);
      } else {
        choices = forced->choices[number][t];
        if (!forced->own_weights) choices = route_forced(layer.router, h, shape, choices);
      }
      if (routed != nullptr) (*routed)[number].push_back(choices);
      for (const Choice& choice : choices) {
        const Mlp& expert = layer.experts[static_cast<std::size_t>(choice.expert)];
        const Vector y = rounded(mlp(expert, h, shape.activation, round), round);
        for (std::size_t i = 0; i < y.size(); ++i) result[i] += choice.weight * y[i];
      }
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
  }
  if (routed != nullptr) routed->assign(model.layers.size(), {});
  for (int l = 0; l < shape.num_layers; ++l) {
    const auto number = static_cast<std::size_t>(l);
    const Layer& layer = model.layers[number];
    attention_layer(x, layer, shape, round);
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
