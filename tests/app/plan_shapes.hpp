#pragma once
// What the tests of app/plan share.

#include "compute/types.hpp"

namespace atl {

/// A model of so many layers, the first `dense` of them without experts.
inline ModelShape shape_with(int layers, int dense) {
  ModelShape shape;
  shape.num_layers = layers;
  shape.layer_is_dense.assign(static_cast<std::size_t>(layers), false);
  for (int i = 0; i < dense; ++i) shape.layer_is_dense[static_cast<std::size_t>(i)] = true;
  return shape;
}

}  // namespace atl
