#pragma once
// Weights from the model file into a backend: what all ranks have, read once for all of them, and
// this rank's own experts.

#include <cstdint>
#include <vector>

#include "app/model/model_config.hpp"
#include "comm/communicator.hpp"
#include "comm/topology.hpp"
#include "compute/backend.hpp"
#include "compute/convert.hpp"
#include "io/model_file.hpp"

namespace atl {

/// What is not finite of a slab, or of the part of one that a rank has read.
struct NonFinitePart {
  std::int64_t dataset = 0;  ///< index into the file's datasets
  std::int64_t slab = 0;
  std::int64_t first = 0;    ///< element of the slab with which the part begins
  compute::NonFinite found;  ///< elements are the slab's
};

/// What loading cost this rank. Reading runs beside the other two.
struct LoadCost {
  double read_s = 0;              ///< in reads of the file
  double best_bytes_per_s = 0;    ///< of one read of a MiB or more; 0: there was none
  double send_s = 0;              ///< in exchanges, waits for other ranks' reading included
  double pack_s = 0;              ///< in the backend
  std::int64_t bytes_read = 0;    ///< from the file
  std::int64_t bytes_shared = 0;  ///< read by one rank for all
  std::int64_t bytes_packed = 0;  ///< as they are on file
};

struct LoadedModel {
  std::vector<NonFinitePart> non_finite;
  LoadCost cost;
};

/// Collective: reads, verifies and packs the part that this rank has, one tensor (or expert's slab)
/// at a time. What all ranks have is read once, in slices by several of them, and sent to the
/// others; experts are read by their holders. `config` is the file's own, from checked_config, so
/// that every dataset is there and has its shape. Throws AgreedFailure for a damaged one. Returns
/// where weights are not finite, or will not be in `dtype`, the backend's: each rank of what it
/// read.
LoadedModel load_weights(const comm::Communicator& world, const comm::Topology& topology,
                         io::ModelFileReader& file, const ModelConfig& config,
                         const compute::Part& part, DType dtype, compute::Backend& backend);

/// Collective: a warning on rank 0's stderr that names the tensors of what the ranks have `found`.
/// Returns there whether any of them is not finite on file already, which no `dtype` mends.
bool warn_of_non_finite(const comm::Communicator& world, const io::ModelFileReader& file,
                        DType dtype, const std::vector<NonFinitePart>& found);

}  // namespace atl
