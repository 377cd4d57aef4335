#include "app/model/tensors.hpp"

#include <utility>

namespace atl {

std::vector<TensorInfo> tensors_of(const ModelConfig& config) {
  std::vector<TensorInfo> tensors;
  const bool plain = is_plain(config.shape);
  for (const compute::WeightInfo& info : compute::weights_of(config.shape)) {
    if (config.tie_word_embeddings && info.id == compute::Weight::lm_head) continue;
    const bool exact = !plain && compute::is_float32_on_file(info.id, info.use);
    const DType dtype = exact ? DType::float32 : config.dtype;
    for (const compute::Dataset& dataset : info.datasets) {
      std::vector<std::int64_t> shape;
      if (info.per_expert) shape.push_back(config.shape.num_experts);
      shape.push_back(dataset.rows);
      // Of experts also a vector has three dimensions: that is how files tell them apart.
      if (info.use == compute::Use::matrix || info.per_expert) shape.push_back(info.cols);
      tensors.push_back(
          {dataset.path, std::move(shape), info.per_expert, dtype, info.id, info.layer});
    }
  }
  return tensors;
}

}  // namespace atl
