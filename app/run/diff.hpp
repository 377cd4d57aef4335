#pragma once
// Where two runs begin to differ.

#include <string>
#include <vector>

#include "app/config.hpp"

namespace atl {

namespace io {
class ActivationReader;
}  // namespace io

/// How x after one layer differs between two files.
struct LayerDifference {
  int layer = 0;
  double largest = 0;  ///< |a - b|; infinite where one of them is no finite number
  double mean = 0;
  double rms = 0;             ///< of a, for scale
  std::string request;        ///< of the largest difference
  std::int64_t position = 0;  ///< the same
  std::int64_t rows = 0;      ///< compared
};

/// Compares the layers that both files have, over the positions that had the same tokens up to
/// there in both. Requests are matched by id. Throws Error where there is nothing to compare.
std::vector<LayerDifference> compare_activations(io::ActivationReader& a, io::ActivationReader& b);

/// Prints the comparison. Throws Error when some layer differs by more than the tolerance.
void diff_activations(const DiffOptions& options);

}  // namespace atl
