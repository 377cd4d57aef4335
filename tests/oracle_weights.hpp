#pragma once
// Where the oracle keeps each weight of the table.

#include <cstddef>
#include <utility>

#include "compute/weights.hpp"
#include "tests/reference.hpp"

namespace atl::testing {

/// Calls visit with the oracle's matrix or vector; makes room for layers and experts.
template <class Visit>
void with_oracle_weight(reference::Model& model, const compute::WeightInfo& info, int expert,
                        Visit&& visit) {
  using compute::Weight;
  if (info.id == Weight::embedding) return visit(model.embedding);
  if (info.id == Weight::final_norm) return visit(model.final_norm);
  if (info.id == Weight::lm_head) return visit(model.lm_head);
  model.layers.resize(static_cast<std::size_t>(model.shape.num_layers));
  reference::Layer& layer = model.layers[static_cast<std::size_t>(info.layer)];
  if (info.per_expert) layer.experts.resize(static_cast<std::size_t>(model.shape.num_experts));
  reference::Mlp& mlp =
      info.per_expert ? layer.experts[static_cast<std::size_t>(expert)] : layer.dense;
  switch (info.id) {
    case Weight::attention_norm:
      return visit(layer.attention_norm);
    case Weight::qkv:
      return visit(layer.qkv);
    case Weight::o:
      return visit(layer.o);
    case Weight::q_norm:
      return visit(layer.q_norm);
    case Weight::k_norm:
      return visit(layer.k_norm);
    case Weight::ffn_norm:
      return visit(layer.ffn_norm);
    case Weight::router:
      return visit(layer.router);
    case Weight::qkv_bias:
      return visit(layer.qkv_bias);
    case Weight::output_bias:
      return visit(layer.output_bias);
    case Weight::sinks:
      return visit(layer.sinks);
    case Weight::router_bias:
      return visit(layer.router_bias);
    case Weight::selection_bias:
      return visit(layer.selection_bias);
    case Weight::gate_bias:
      return visit(mlp.gate_bias);
    case Weight::up_bias:
      return visit(mlp.up_bias);
    case Weight::down_bias:
      return visit(mlp.down_bias);
    case Weight::shared_gate:
      return visit(layer.shared.gate);
    case Weight::shared_up:
      return visit(layer.shared.up);
    case Weight::shared_down:
      return visit(layer.shared.down);
    case Weight::shared_router:
      return visit(layer.shared_router);
    case Weight::q_latent_norm:
      return visit(layer.q_latent_norm);
    case Weight::kv_latent_norm:
      return visit(layer.kv_latent_norm);
    case Weight::q_up:
      return visit(layer.q_up);
    case Weight::k_up:
      return visit(layer.k_up);
    case Weight::v_up:
      return visit(layer.v_up);
    case Weight::gate:
      return visit(mlp.gate);
    case Weight::up:
      return visit(mlp.up);
    default:
      return visit(mlp.down);
  }
}

/// Gives the oracle one weight, `values` being its rows one after the other.
inline void set_weight(reference::Model& model, const compute::WeightInfo& info, int expert,
                       reference::Vector values) {
  struct Set {
    const compute::WeightInfo& info;
    reference::Vector& values;
    void operator()(reference::Vector& vector) const { vector = std::move(values); }
    void operator()(reference::Matrix& matrix) const {
      for (auto row = values.begin(); row != values.end(); row += info.cols) {
        matrix.emplace_back(row, row + info.cols);
      }
    }
  };
  with_oracle_weight(model, info, expert, Set{info, values});
}

/// The oracle's values of one weight, row after row.
inline reference::Vector weight_values(reference::Model& model, const compute::WeightInfo& info,
                                       int expert) {
  reference::Vector values;
  struct Get {
    reference::Vector& values;
    void operator()(const reference::Vector& vector) const {
      values.insert(values.end(), vector.begin(), vector.end());
    }
    void operator()(const reference::Matrix& matrix) const {
      for (const reference::Vector& row : matrix) (*this)(row);
    }
  };
  with_oracle_weight(model, info, expert, Get{values});
  return values;
}

}  // namespace atl::testing
