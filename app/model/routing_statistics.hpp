#pragma once
// How a layer's tokens spread over its experts.

#include <cstdint>
#include <span>
#include <vector>

namespace atl {

/// Counts the choices of one layer.
class RoutingStatistics {
 public:
  /// Pairs of experts are counted for up to so many experts: their number grows with the square.
  static constexpr int most_experts_in_pairs = 1024;

  explicit RoutingStatistics(int num_experts);

  /// The experts of one token, different ones, each below num_experts.
  void add(std::span<const std::int32_t> experts);

  std::int64_t tokens() const { return tokens_; }
  const std::vector<std::int64_t>& loads() const { return loads_; }  ///< [experts], rows of each

  /// Rows of the expert with most, over the mean of all: 1 is even.
  double largest_over_mean() const;
  /// Standard deviation of the loads over their mean: 0 is even.
  double variation() const;
  /// e^entropy of the loads' shares: so many evenly loaded experts would be as uncertain.
  double effective_experts() const;

  struct Pair {
    int a = -1;  ///< -1: no token has two experts
    int b = -1;
    std::int64_t tokens = 0;  ///< that have both
    /// Over what experts chosen independently of each other would give: tokens(a) tokens(b) / all.
    double lift = 0;
  };
  /// The pair that most tokens have, the lowest of equals.
  Pair commonest_pair() const;

 private:
  int num_experts_;
  std::int64_t tokens_ = 0;
  std::vector<std::int64_t> loads_;
  std::vector<std::int64_t> together_;  // [a * experts + b], a < b; empty: not counted
};

}  // namespace atl
