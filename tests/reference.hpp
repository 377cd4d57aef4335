#pragma once
// The oracle: the whole model in plain float64 loops. Everything Atoll computes is measured against
// this file, so it favours being obviously right over anything else. `round` is said in
// reference_rows.hpp.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "tests/reference_rows.hpp"

namespace atl::reference {

/// Keys and values by heads, of one position.
struct Projected {
  Vector q, k, v;
  Vector kept;  // of latents: the latent, normalised, and its rotated key
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
  result.kept = kept;
  result.kept.insert(result.kept.end(), turned.begin(), turned.end());
  return result;
}

/// What a generated token's attention gives: its queries are taken to the latents kept so far, and
/// what they find there is taken back to values.
inline Vector absorbed_attention(const Vector& q, const Matrix& kept, const Layer& layer,
                                 const ModelShape& shape, Round round) {
  const auto keys = static_cast<std::size_t>(shape.latent.keys);
  const auto d = static_cast<std::size_t>(shape.head_dim);
  const std::size_t nope = d - static_cast<std::size_t>(shape.latent.rope);
  const auto value_dim = static_cast<std::size_t>(shape.values_dim());
  Vector out;
  for (std::size_t head = 0; head < static_cast<std::size_t>(shape.num_heads); ++head) {
    Vector query(keys, 0.0);
    for (std::size_t n = 0; n < nope; ++n) {
      for (std::size_t i = 0; i < keys; ++i) {
        query[i] += q[head * d + n] * layer.k_up[head * nope + n][i];
      }
    }
    query = rounded(query, round);
    query.insert(query.end(), q.begin() + static_cast<std::ptrdiff_t>(head * d + nope),
                 q.begin() + static_cast<std::ptrdiff_t>((head + 1) * d));
    Vector scores;
    for (const Vector& row : kept) scores.push_back(dot(query, row) * shape.logit_scale());
    softmax(scores);
    Vector found(keys, 0.0);
    for (std::size_t s = 0; s < kept.size(); ++s) {
      for (std::size_t i = 0; i < keys; ++i) found[i] += scores[s] * kept[s][i];
    }
    found = rounded(found, round);
    for (std::size_t i = 0; i < value_dim; ++i) {
      out.push_back(dot(layer.v_up[head * value_dim + i], found));
    }
  }
  return out;
}

/// x += Attention(RMSNorm(x)), of layer number `number`; `prompt` as in Model.
inline void attention_layer(Matrix& x, const Layer& layer, const ModelShape& shape, Round round,
                            int number = 0, int prompt = std::numeric_limits<int>::max()) {
  Matrix q, k, v, kept;
  for (std::size_t t = 0; t < x.size(); ++t) {
    const Vector h = rounded(rms_norm(x[t], layer.attention_norm, shape.rms_eps), round);
    const int position = static_cast<int>(t);
    const Projected row = shape.latent.used() ? project_latents(h, layer, shape, position, round)
                                              : project(h, layer, shape, number, position, round);
    q.push_back(row.q);
    k.push_back(row.k);
    v.push_back(row.v);
    kept.push_back(row.kept);
  }
  Matrix context = attention(q, k, v, shape, shape.attention(number), layer.sinks);
  for (std::size_t t = 0; shape.latent.used() && t < x.size(); ++t) {
    if (static_cast<int>(t) < prompt) continue;
    const Matrix so_far(kept.begin(), kept.begin() + static_cast<std::ptrdiff_t>(t) + 1);
    context[t] = absorbed_attention(q[t], so_far, layer, shape, round);
  }
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
    attention_layer(x, layer, shape, round, l, model.prompt);
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
