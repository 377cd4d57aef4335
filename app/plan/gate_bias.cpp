#include "app/plan/gate_bias.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "compute/error.hpp"

namespace atl {

namespace {

// Steps grow while an expert moves the same way and shrink when it turns: what a step changes is
// not known beforehand, and is another for each layer and text.
constexpr double first_step = 1.0 / 32, least_step = 1.0 / 2048,
                 largest_step = 1.0 / 4;  // of max_bias
constexpr double growth = 1.2, shrinkage = 0.5;
/// Loads this close to the bound, or as close as chance brings them, move nothing.
constexpr double close_enough = 0.01;

}  // namespace

Drift& Drift::operator+=(const Drift& other) {
  tokens += other.tokens;
  change += other.change;
  absolute_change += other.absolute_change;
  return *this;
}

void Drift::add(float with, float without) {
  const std::int64_t units = std::llround((double{with} - double{without}) * drift_units);
  ++tokens;
  change += units;
  absolute_change += std::abs(units);
}

double Drift::mean() const {
  return tokens == 0 ? 0 : static_cast<double>(change) / drift_units / static_cast<double>(tokens);
}

double Drift::mean_absolute() const {
  return tokens == 0
             ? 0
             : static_cast<double>(absolute_change) / drift_units / static_cast<double>(tokens);
}

GateBias::GateBias(int num_layers, int num_experts, double above, const BiasOptions& options)
    : num_experts_(static_cast<std::size_t>(num_experts)), above_(above), options_(options) {
  const std::size_t all = static_cast<std::size_t>(num_layers) * num_experts_;
  lost_.resize(all);
  step_.resize(all, first_step * options.max_bias);
  moved_.resize(all);
  tables_.assign(2, std::vector<float>(all));
}

void GateBias::add_block(std::span<const std::int64_t> counts) {
  ++blocks_;
  for (std::size_t first = 0; first < lost_.size(); first += num_experts_) {
    move_layer(counts.subspan(first, num_experts_), first);
  }
  tables_.push_back(published());
}

void GateBias::move_layer(std::span<const std::int64_t> counts, std::size_t first) {
  const double mean =
      static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0})) /
      static_cast<double>(counts.size());
  if (mean <= 0) return;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    const std::size_t i = first + e;
    const double load = static_cast<double>(counts[e]) / mean;
    const double chance = std::sqrt(load / mean);
    int way = 0;
    if (std::abs(load - above_) > std::max(close_enough, chance)) way = load > above_ ? -1 : 1;
    if (way == 0 || (way > 0 && lost_[i] == 0) || (way < 0 && held_)) continue;
    if (moved_[i] != 0) step_[i] *= way == moved_[i] ? growth : shrinkage;
    step_[i] =
        std::clamp(step_[i], least_step * options_.max_bias, largest_step * options_.max_bias);
    moved_[i] = way;
    lost_[i] = std::clamp(lost_[i] + way * step_[i], -options_.max_bias, 0.0);
  }
}

/// Less their layer's mean: what hot experts lose, starved ones get. Choices are the same.
std::vector<float> GateBias::published() const {
  std::vector<float> offsets(lost_.size());
  for (std::size_t first = 0; first < lost_.size(); first += num_experts_) {
    const auto begin = lost_.begin() + static_cast<std::ptrdiff_t>(first);
    const double mean =
        std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(num_experts_), 0.0) /
        static_cast<double>(num_experts_);
    for (std::size_t i = first; i < first + num_experts_; ++i) {
      offsets[i] = static_cast<float>(lost_[i] - mean);
    }
  }
  return offsets;
}

void GateBias::add_drift(const Drift& drift) {
  held_ = held_ || drift.mean_absolute() > options_.max_drift;
}

std::span<const float> GateBias::offsets(std::int64_t block) const {
  require(block >= first_known_ && block < first_known_ + std::ssize(tables_),
          "internal: the offsets of block {} are not known", block);
  return tables_[static_cast<std::size_t>(block - first_known_)];
}

void GateBias::forget_before(std::int64_t block) {
  for (; first_known_ < block && tables_.size() > 1; ++first_known_) tables_.pop_front();
}

double GateBias::largest() const {
  double most = 0;
  for (const float offset : tables_.back()) most = std::max(most, std::abs(double{offset}));
  return most;
}

}  // namespace atl
