#pragma once
// A real router's choices as a backend takes them in place of its own.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "compute/backend.hpp"
#include "perf/layers_model.hpp"

namespace atl::perf {

class RecordedChoices {
 public:
  /// Of a chunk's tokens in a layer; they live until the chunk's next layer is asked for, whose
  /// router runs after this one's.
  compute::ForcedChoices of(const LayersModel& model, std::span<const std::int32_t> tokens,
                            int chunk, int layer) {
    auto& experts = experts_[static_cast<std::size_t>(chunk)];
    const auto top_k = static_cast<std::size_t>(model.shape().top_k);
    experts.resize(tokens.size() * top_k);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      model.experts_of(tokens[t], layer, std::span(experts).subspan(t * top_k, top_k));
    }
    return {experts.data(), nullptr};
  }

 private:
  std::array<std::vector<std::int32_t>, 64> experts_;  // [chunks]: [tokens, top_k]
};

}  // namespace atl::perf
