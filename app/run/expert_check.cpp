#include "app/run/expert_check.hpp"

#include <span>
#include <utility>

#include "compute/clock.hpp"
#include "io/running_checksum.hpp"

namespace atl {

ExpertCheck::ExpertCheck(compute::Backend& backend, std::vector<int> num_experts)
    : backend_(backend) {
  for (const int count : num_experts) sums_.emplace_back(static_cast<std::size_t>(count));
}

/// To the next expert, after the last one the first again; false where there is none.
bool ExpertCheck::advance() {
  const int layers = static_cast<int>(sums_.size());
  for (int tried = 0; tried <= layers; ++tried) {
    if (layer_ < layers && ++local_ < std::ssize(sums_[static_cast<std::size_t>(layer_)]))
      return true;
    layer_ = layer_ + 1 < layers ? layer_ + 1 : 0;
    local_ = -1;
  }
  return false;
}

std::optional<ExpertCheck::Found> ExpertCheck::next() {
  if (!advance()) return std::nullopt;
  const double begin = now_seconds();
  bytes_.resize(static_cast<std::size_t>(backend_.expert_bytes(layer_)));
  backend_.read_expert(layer_, local_, bytes_);
  io::RunningChecksum checksum;
  checksum.add(bytes_);
  const auto before = std::exchange(sum(layer_, local_), checksum.value());
  ++looks_;
  seconds_ += now_seconds() - begin;
  if (!before || *before == checksum.value()) return std::nullopt;
  return Found{layer_, local_};
}

void ExpertCheck::all_changed() {
  for (auto& layer : sums_) layer.assign(layer.size(), std::nullopt);
}

}  // namespace atl
