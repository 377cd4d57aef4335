#include "app/plan/layer_sample.hpp"

#include <algorithm>

namespace atl {

namespace {

/// Of each stage, after those dense ones that come first.
constexpr int few_layers = 4, more_layers = 8;

int leading_dense(const ModelShape& shape) {
  const auto first = std::find(shape.layer_is_dense.begin(), shape.layer_is_dense.end(), false);
  return static_cast<int>(first - shape.layer_is_dense.begin());
}

int layers_with(const ModelShape& shape, int num_stages, int layers) {
  return num_stages * (leading_dense(shape) + layers);
}

ModelShape first_layers(ModelShape shape, int num_layers) {
  shape.num_layers = num_layers;
  shape.layer_is_dense.resize(static_cast<std::size_t>(num_layers));
  if (!shape.attention_of.empty()) shape.attention_of.resize(static_cast<std::size_t>(num_layers));
  return shape;
}

LayoutSetup with_shape(LayoutSetup setup, const ModelShape& shape) {
  setup.shape = &shape;
  setup.placement.kind_of_layer.resize(static_cast<std::size_t>(shape.num_layers));
  return setup;
}

}  // namespace

bool LayerSample::pays(const ModelShape& shape, int num_stages) {
  const int simulated =
      layers_with(shape, num_stages, few_layers) + layers_with(shape, num_stages, more_layers);
  return 3 * simulated <= 2 * shape.num_layers;
}

LayerSample::LayerSample(const LayoutSetup& setup)
    : few_(first_layers(*setup.shape,
                        layers_with(*setup.shape, setup.job.division().pp, few_layers))),
      more_(first_layers(*setup.shape,
                         layers_with(*setup.shape, setup.job.division().pp, more_layers))),
      few_pricer_(with_shape(setup, few_)),
      more_pricer_(with_shape(setup, more_)),
      reach_(static_cast<double>(setup.shape->num_layers - few_.num_layers) /
             (more_.num_layers - few_.num_layers)) {}

PassPrice LayerSample::price(const std::vector<PassLoad>& loads, const PassForm& form,
                             const SimulationDetail& detail) const {
  const PassPrice few = few_pricer_.price(loads, form, detail);
  PassPrice price = more_pricer_.price(loads, form, detail);
  for (double PassPrice::*const figure :
       {&PassPrice::seconds, &PassPrice::flops, &PassPrice::arithmetic_limit_s,
        &PassPrice::busiest_arithmetic_s, &PassPrice::link_limit_s,
        &PassPrice::busiest_link_bytes}) {
    price.*figure = few.*figure + reach_ * (price.*figure - few.*figure);
  }
  return price;
}

}  // namespace atl
