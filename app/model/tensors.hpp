#pragma once
// A model's weights as datasets of its file.

#include <cstdint>
#include <string>
#include <vector>

#include "app/model/model_config.hpp"
#include "compute/weights.hpp"

namespace atl {

/// One dataset of a model file.
struct TensorInfo {
  std::string path;                 ///< e.g. "/model/layers/3/mlp/experts/up_proj/weight"
  std::vector<std::int64_t> shape;  ///< stacked expert tensors are [experts, out, in]
  bool per_expert = false;          ///< checksums and reads go by expert slab
  DType dtype = DType::bfloat16;
  compute::Weight weight = compute::Weight::embedding;  ///< what it holds, or holds rows of
  int layer = -1;
  Coding coding{};      ///< where the weight is kept as codes: these, [.., bytes of a row],
  bool scales = false;  ///< or their scales, [.., groups of columns]
};

/// Every dataset a model of this configuration has, in file order. A tied head has none. Models
/// that version 1 does not describe have vectors and routers in float32.
std::vector<TensorInfo> tensors_of(const ModelConfig& config);

}  // namespace atl
