#pragma once
// Which weights a backend must be given, and which it has been.

#include <set>
#include <tuple>
#include <vector>

#include "compute/backend.hpp"

namespace atl::compute {

class LoadedWeights {
 public:
  LoadedWeights(const ModelShape& shape, const Part& part);

  /// Notes that a weight comes, and returns its row of the table. Throws Error unless the part has
  /// it, with the shape of `tensor`.
  const WeightInfo& note(Weight weight, int layer, int local_expert, const HostTensor& tensor);

  /// Throws Error with the name of the first weight of the part that has not come. Otherwise all
  /// may come again.
  void require_all();

 private:
  ModelShape shape_;
  Part part_;
  std::vector<WeightInfo> table_;
  std::set<std::tuple<Weight, int, int>> noted_;
};

}  // namespace atl::compute
