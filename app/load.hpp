#pragma once
// Weights from the model file into a backend: the replicated part and this rank's own experts.

#include <vector>

#include "app/model.hpp"
#include "compute/backend.hpp"
#include "io/model_file.hpp"

namespace atl {

/// Reads and verifies what this rank needs and nothing else, one tensor (or expert slab) at a time.
/// `config` is the file's own, from checked_config, so that every dataset is there and has its
/// shape. Throws Error for a damaged one.
void load_weights(io::ModelFileReader& file, const ModelConfig& config,
                  const std::vector<int>& local_experts, compute::Backend& backend);

}  // namespace atl
