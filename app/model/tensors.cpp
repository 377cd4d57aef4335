#include "app/model/tensors.hpp"

#include <utility>

namespace atl {

std::vector<TensorInfo> tensors_of(const ModelConfig& config) {
  std::vector<TensorInfo> tensors;
  for (const compute::WeightInfo& info : compute::weights_of(config.shape)) {
    if (config.tie_word_embeddings && info.id == compute::Weight::lm_head) continue;
    for (const compute::Dataset& dataset : info.datasets) {
      std::vector<std::int64_t> shape;
      if (info.per_expert) shape.push_back(config.shape.num_experts);
      shape.push_back(dataset.rows);
      if (info.use == compute::Use::matrix) shape.push_back(info.cols);
      tensors.push_back({dataset.path, std::move(shape), info.per_expert, info.id, info.layer});
    }
  }
  return tensors;
}

}  // namespace atl
