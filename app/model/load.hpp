#pragma once
// Weights from the model file into a backend: the replicated part and this rank's own experts.

#include <cstdint>
#include <vector>

#include "app/model/model_config.hpp"
#include "comm/communicator.hpp"
#include "compute/backend.hpp"
#include "compute/convert.hpp"
#include "io/model_file.hpp"

namespace atl {

/// What of one slab is not finite.
struct NonFiniteSlab {
  std::int64_t dataset = 0;  ///< index into the file's datasets
  std::int64_t slab = 0;
  compute::NonFinite found;
};

/// Reads and verifies the part that this rank has and nothing else, one tensor (or expert slab) at
/// a time. `config` is the file's own, from checked_config, so that every dataset is there and has
/// its shape. Throws Error for a damaged one. Returns where weights are not finite, or will not be
/// in `dtype`, the backend's.
std::vector<NonFiniteSlab> load_weights(io::ModelFileReader& file, const ModelConfig& config,
                                        const compute::Part& part, DType dtype,
                                        compute::Backend& backend);

/// Collective: a warning on rank 0's stderr that names the tensors of what the ranks have `found`.
/// Returns there whether any of them is not finite on file already, which no `dtype` mends.
bool warn_of_non_finite(const comm::Communicator& world, const io::ModelFileReader& file,
                        DType dtype, const std::vector<NonFiniteSlab>& found);

}  // namespace atl
