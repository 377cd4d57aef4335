#include "app/model/tensors.hpp"

#include <utility>

namespace atl {

namespace {
/// The datasets of a matrix that is kept as codes.
void add_codes(std::vector<TensorInfo>& tensors, TensorInfo matrix, const Coding& coding) {
  const std::int64_t cols = matrix.shape.back();
  matrix.coding = coding;
  TensorInfo scales = matrix;
  matrix.dtype = DType::uint8;
  matrix.shape.back() = coding.row_bytes(cols);
  scales.scales = true;
  scales.path = compute::scales_path(matrix.path);
  scales.dtype = coding.scale_bytes() == 1 ? DType::uint8 : DType::float32;
  scales.shape.back() = coding.groups(cols);
  tensors.push_back(std::move(matrix));
  tensors.push_back(std::move(scales));
}
}  // namespace

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
      TensorInfo tensor{dataset.path, std::move(shape), info.per_expert,
                        dtype,        info.id,          info.layer};
      if (info.coding.used()) {
        add_codes(tensors, std::move(tensor), info.coding);
      } else {
        tensors.push_back(std::move(tensor));
      }
    }
  }
  return tensors;
}

}  // namespace atl
