#pragma once
// Passes of many layers, priced from those of a few: what passes take grows by a line with layers.

#include <vector>

#include "app/plan/layout_pricer.hpp"

namespace atl {

class LayerSample {
 public:
  /// Whether two samples have far fewer layers than the model.
  static bool pays(const ModelShape& shape, int num_stages);

  /// Takes the first layers of the model, once a few and once twice as many. Throws Error where
  /// model and layout do not go together.
  explicit LayerSample(const LayoutSetup& setup);
  LayerSample(const LayerSample&) = delete;
  LayerSample& operator=(const LayerSample&) = delete;

  /// As LayoutPricer::price() of all layers; shares, messages and bytes are those of the larger
  /// sample.
  PassPrice price(const std::vector<PassLoad>& loads, const PassForm& form,
                  const SimulationDetail& detail) const;

 private:
  ModelShape few_, more_;
  LayoutPricer few_pricer_, more_pricer_;
  double reach_ = 0;  // layers beyond the smaller sample, in steps from it to the larger one
};

}  // namespace atl
