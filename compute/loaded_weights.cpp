#include "compute/loaded_weights.hpp"

#include <algorithm>
#include <string>

#include "compute/error.hpp"

namespace atl::compute {

namespace {

std::string text_of(Weight weight, int layer, int local_expert) {
  std::string text = fmt::format("weight {}", name_of(weight));
  if (layer >= 0) text += fmt::format(" of layer {}", layer);
  if (local_expert >= 0) text += fmt::format(", local expert {}", local_expert);
  return text;
}

}  // namespace

LoadedWeights::LoadedWeights(const ModelShape& shape, const Part& part)
    : shape_(shape), part_(part), table_(weights_of(shape)) {}

const WeightInfo& LoadedWeights::note(Weight weight, int layer, int local_expert,
                                      const HostTensor& tensor) {
  const auto info = std::ranges::find_if(
      table_, [&](const WeightInfo& row) { return row.id == weight && row.layer == layer; });
  const auto has_expert = [&] {
    const int held = static_cast<int>(part_.experts[static_cast<std::size_t>(layer)].size());
    return local_expert >= 0 && local_expert < held;
  };
  require(info != table_.end() && has_weight(shape_, part_, *info) &&
              (info->per_expert ? has_expert() : local_expert == -1),
          "this part of the model has no {}", text_of(weight, layer, local_expert));
  // A vector may come as one row or as one column.
  const bool fits = (tensor.rows == info->rows && tensor.cols == info->cols) ||
                    (info->use == Use::vector && tensor.rows == 1 && tensor.cols == info->rows);
  require(fits && tensor.data != nullptr, "{} has shape [{}, {}], the configuration says [{}, {}]",
          text_of(weight, layer, local_expert), tensor.rows, tensor.cols, info->rows, info->cols);
  noted_.emplace(weight, layer, local_expert);
  return *info;
}

void LoadedWeights::require_all() {
  for_each_weight(shape_, part_, [&](const WeightInfo& info, int, int local_expert) {
    require(noted_.contains({info.id, info.layer, local_expert}), "cannot start: {} was not loaded",
            text_of(info.id, info.layer, local_expert));
  });
  noted_.clear();
}

}  // namespace atl::compute
