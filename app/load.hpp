#pragma once
// Weights from the model file into a backend: the replicated part and this rank's own experts.

#include <vector>

#include "app/model.hpp"
#include "compute/backend.hpp"
#include "io/model_file.hpp"

namespace atl {

/// Reads and verifies what this rank needs and nothing else, one tensor (or expert slab) at a time.
/// Throws Error for a missing, misshapen or damaged dataset.
void load_weights(io::ModelFileReader& file, const ModelConfig& config,
                  const std::vector<int>& local_experts, compute::Backend& backend);

}  // namespace atl
