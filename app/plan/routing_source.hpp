#pragma once
// Which experts tokens choose: as a recorded trace has it, or by a law.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "app/plan/expert_choices.hpp"

namespace atl {

/// Experts' weights in a layer are log-normal with this sigma, drawn for each layer by itself;
/// 0: uniform.
struct RoutingLaw {
  double sigma = 0;
  std::uint64_t seed = 1;
};

class RoutingSource {
 public:
  /// By a law, of so many experts.
  RoutingSource(const RoutingLaw& law, int num_layers, int num_experts, int top_k);
  /// `layers` [layers of the model], empty where dense; each token's first top_k count. Tokens are
  /// rows of the trace, which begins anew where it is too short.
  RoutingSource(std::vector<ExpertChoices> layers, int top_k);

  int top_k() const { return top_k_; }
  /// experts [top_k] of one token: alike for the same arguments on every machine.
  void choose(int layer, std::uint64_t token, std::span<std::int32_t> experts) const;
  /// The law as text, or "trace".
  const std::string& text() const { return text_; }
  /// [experts]: the share of a layer's choices that each gets.
  std::vector<double> shares(int layer) const;

 private:
  struct Alias {
    std::vector<double> keep;
    std::vector<std::int32_t> other;
  };
  static Alias alias_of(const std::vector<double>& weights);

  int num_experts_ = 0;
  int top_k_ = 0;
  std::uint64_t seed_ = 0;
  std::vector<std::vector<double>> weights_;  // [layers][experts], by a law
  std::vector<Alias> aliases_;                // [layers]
  std::vector<ExpertChoices> trace_;          // [layers]
  std::string text_;
};

}  // namespace atl
