#pragma once
// What the oracle (reference.hpp) is made of: a model's weights, and products, norms, ropes and
// attention of rows.
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
  /// Positions of the prompt: with latents, later ones attend to these themselves, which only
  /// rounds otherwise.
  int prompt = std::numeric_limits<int>::max();
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

}  // namespace atl::reference
