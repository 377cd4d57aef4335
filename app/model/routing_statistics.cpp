#include "app/model/routing_statistics.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace atl {

RoutingStatistics::RoutingStatistics(int num_experts)
    : num_experts_(num_experts), loads_(static_cast<std::size_t>(num_experts)) {
  if (num_experts > most_experts_in_pairs) return;
  together_.resize(loads_.size() * loads_.size());
}

void RoutingStatistics::add(std::span<const std::int32_t> experts) {
  ++tokens_;
  for (const std::int32_t expert : experts) ++loads_[static_cast<std::size_t>(expert)];
  if (together_.empty()) return;
  for (std::size_t i = 0; i < experts.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      const auto [a, b] = std::minmax(experts[i], experts[j]);
      ++together_[static_cast<std::size_t>(a) * loads_.size() + static_cast<std::size_t>(b)];
    }
  }
}

double RoutingStatistics::largest_over_mean() const {
  const auto sum = std::accumulate(loads_.begin(), loads_.end(), std::int64_t{0});
  if (sum == 0) return 0;
  return static_cast<double>(*std::max_element(loads_.begin(), loads_.end())) * num_experts_ /
         static_cast<double>(sum);
}

double RoutingStatistics::variation() const {
  const auto sum = std::accumulate(loads_.begin(), loads_.end(), std::int64_t{0});
  if (sum == 0) return 0;
  const double mean = static_cast<double>(sum) / num_experts_;
  double squares = 0;
  for (const std::int64_t load : loads_) {
    squares += (static_cast<double>(load) - mean) * (static_cast<double>(load) - mean);
  }
  return std::sqrt(squares / num_experts_) / mean;
}

double RoutingStatistics::effective_experts() const {
  const auto sum = std::accumulate(loads_.begin(), loads_.end(), std::int64_t{0});
  double entropy = 0;
  for (const std::int64_t load : loads_) {
    if (load == 0) continue;
    const double share = static_cast<double>(load) / static_cast<double>(sum);
    entropy -= share * std::log(share);
  }
  return sum == 0 ? 0 : std::exp(entropy);
}

RoutingStatistics::Pair RoutingStatistics::commonest_pair() const {
  Pair pair;
  const auto top = std::max_element(together_.begin(), together_.end());
  if (top == together_.end() || *top == 0) return pair;
  const auto at = static_cast<std::size_t>(top - together_.begin());
  pair.a = static_cast<int>(at / loads_.size());
  pair.b = static_cast<int>(at % loads_.size());
  pair.tokens = *top;
  pair.lift = static_cast<double>(pair.tokens) * static_cast<double>(tokens_) /
              (static_cast<double>(loads_[static_cast<std::size_t>(pair.a)]) *
               static_cast<double>(loads_[static_cast<std::size_t>(pair.b)]));
  return pair;
}

}  // namespace atl
