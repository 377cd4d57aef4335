#include "app/plan/routing_source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "app/plan/random.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

double unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace

RoutingSource::RoutingSource(const RoutingLaw& law, int num_layers, int num_experts, int top_k)
    : num_experts_(num_experts), top_k_(top_k), seed_(split_mix64(law.seed)) {
  text_ = law.sigma > 0 ? fmt::format("log-normal, sigma {}", law.sigma) : "uniform";
  for (int layer = 0; layer < num_layers; ++layer) {
    std::vector<double> weights;
    for (int expert = 0; expert < num_experts; ++expert) {
      const auto key =
          seed_ + static_cast<std::uint64_t>(layer) * 65536 + static_cast<std::uint64_t>(expert);
      const double radius = std::sqrt(-2 * std::log(1 - unit(split_mix64(2 * key))));
      const double normal = radius * std::cos(2 * M_PI * unit(split_mix64(2 * key + 1)));
      weights.push_back(std::exp(law.sigma * normal));
    }
    weights_.push_back(weights);
    aliases_.push_back(alias_of(weights));
  }
}

RoutingSource::RoutingSource(std::vector<ExpertChoices> layers, int top_k)
    : top_k_(top_k), trace_(std::move(layers)), text_("trace") {
  for (const ExpertChoices& layer : trace_)
    num_experts_ = std::max(num_experts_, layer.num_experts);
}

/// Walker's alias method, as Vose (1991) sets it up.
RoutingSource::Alias RoutingSource::alias_of(const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  Alias alias{std::vector<double>(weights.size(), 1.0), {}};
  alias.other.resize(weights.size());
  std::iota(alias.other.begin(), alias.other.end(), 0);
  std::vector<double> scaled;
  std::vector<std::int32_t> small, large;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    scaled.push_back(weights[i] / sum * static_cast<double>(weights.size()));
    (scaled.back() < 1 ? small : large).push_back(static_cast<std::int32_t>(i));
  }
  while (!small.empty() && !large.empty()) {
    const auto s = static_cast<std::size_t>(small.back());
    const auto l = static_cast<std::size_t>(large.back());
    small.pop_back();
    alias.keep[s] = scaled[s];
    alias.other[s] = static_cast<std::int32_t>(l);
    scaled[l] -= 1 - scaled[s];
    if (scaled[l] < 1) {
      large.pop_back();
      small.push_back(static_cast<std::int32_t>(l));
    }
  }
  return alias;
}

void RoutingSource::choose(int layer, std::uint64_t token, std::span<std::int32_t> experts) const {
  const auto l = static_cast<std::size_t>(layer);
  if (!trace_.empty()) {
    const ExpertChoices& choices = trace_[l];
    const auto of_token = choices.of(token % choices.num_tokens());
    std::copy_n(of_token.begin(), experts.size(), experts.begin());
    return;
  }
  const Alias& alias = aliases_[l];
  std::uint64_t state = seed_ ^ (token + (static_cast<std::uint64_t>(layer) << 48));
  const auto count = static_cast<std::uint64_t>(num_experts_);
  for (std::size_t j = 0; j < experts.size();) {
    // The upper half says which slot, the lower one whether its own expert or the other.
    state = split_mix64(state);
    const auto slot = static_cast<std::size_t>(((state >> 32) * count) >> 32);
    const double part = static_cast<double>(state & 0xffffffff) * 0x1p-32;
    const std::int32_t expert =
        part < alias.keep[slot] ? static_cast<std::int32_t>(slot) : alias.other[slot];
    const auto before = experts.first(j);
    if (std::find(before.begin(), before.end(), expert) == before.end()) experts[j++] = expert;
  }
}

std::vector<double> RoutingSource::shares(int layer) const {
  const auto l = static_cast<std::size_t>(layer);
  std::vector<double> shares(static_cast<std::size_t>(num_experts_));
  if (trace_.empty()) {
    shares = weights_[l];
  } else {
    const auto width = static_cast<std::size_t>(trace_[l].top_k);
    for (std::size_t i = 0; i < trace_[l].experts.size(); ++i) {
      if (i % width < static_cast<std::size_t>(top_k_)) shares[trace_[l].experts[i]] += 1;
    }
  }
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= std::max(sum, 1.0e-300);
  return shares;
}

}  // namespace atl
