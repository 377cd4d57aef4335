#pragma once
// The router's kernel on the device with any placement: tables there, results on the host.

#include <algorithm>
#include <random>
#include <tuple>
#include <vector>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/plan/workspace.hpp"
#include "tests/cuda/device_memory.hpp"

namespace atl::testing {

/// Experts as they are sent: expert e at place order[e], all on one node.
inline compute::ExpertPlaces places_in_order(const std::vector<std::int32_t>& order) {
  compute::ExpertPlaces places;
  for (const std::int32_t place : order) {
    places.first_of_expert.push_back(static_cast<std::int32_t>(places.replicas.size()));
    places.replicas.push_back({place, 0, compute::Distance::own_rank});
  }
  const auto count = static_cast<std::int32_t>(order.size());
  places.first_of_expert.push_back(count);
  places.first_of_node = {0, count};
  return places;
}

/// One to `most` replicas of each expert on nodes drawn at random; some nodes may have none.
inline compute::ExpertPlaces random_places(int experts, int nodes, int most, unsigned seed) {
  std::mt19937 random(seed);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  compute::ExpertPlaces places;
  places.own_node = below(nodes);
  std::vector<std::tuple<int, unsigned, std::size_t>> order;  // by node, there by chance
  for (int expert = 0; expert < experts; ++expert) {
    places.first_of_expert.push_back(static_cast<std::int32_t>(places.replicas.size()));
    for (int i = 1 + below(most); i > 0; --i) {
      const int node = below(nodes);
      const bool own = node == places.own_node;
      order.emplace_back(node, random(), places.replicas.size());
      places.replicas.push_back({0, node,
                                 !own           ? compute::Distance::elsewhere
                                 : below(2) > 0 ? compute::Distance::own_rank
                                                : compute::Distance::own_node});
    }
  }
  places.first_of_expert.push_back(static_cast<std::int32_t>(places.replicas.size()));
  std::sort(order.begin(), order.end());
  places.first_of_node.assign(static_cast<std::size_t>(nodes) + 1, 0);
  for (std::size_t place = 0; place < order.size(); ++place) {
    places.replicas[std::get<2>(order[place])].place = static_cast<std::int32_t>(place);
    for (int node = std::get<0>(order[place]); node < nodes; ++node) {
      ++places.first_of_node[static_cast<std::size_t>(node) + 1];
    }
  }
  return places;
}

/// Choices that are given to the router; empty ones are not.
struct GivenChoices {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

/// Tables and results of one route, in device memory.
struct RoutedOnDevice {
  RoutedOnDevice(const std::vector<float>& logits, const compute::ExpertPlaces& places, int top_k,
                 bool renormalise, bool for_nodes, const GivenChoices& given = {})
      : tokens(logits.size() / (places.first_of_expert.size() - 1)),
        first_of_expert(places.first_of_expert),
        replicas(places.replicas),
        first_of_node(places.first_of_node),
        experts(tokens * static_cast<std::size_t>(top_k)),
        weights(experts.host().size()),
        chosen(experts.host().size()),
        slots(experts.host().size()),
        sent(experts.host().size()),
        counts(places.replicas.size() + 2 * static_cast<std::size_t>(places.num_nodes())) {
    namespace cuda = compute::cuda;
    const DeviceArray<float> device_logits(logits);
    if (!given.experts.empty()) experts.set(given.experts);
    if (!given.weights.empty()) weights.set(given.weights);
    cuda::RouteArgs args;
    args.logits = device_logits.get();
    args.replicas = table();
    args.has_replicas = places.has_replicas();
    args.for_nodes = for_nodes;
    args.num_tokens = static_cast<int>(tokens);
    args.num_experts = static_cast<int>(places.first_of_expert.size()) - 1;
    args.num_places = places.num_places();
    args.num_nodes = places.num_nodes();
    args.top_k = top_k;
    args.renormalise = renormalise;
    args.forced = !given.experts.empty();
    args.forced_weights = !given.weights.empty();
    args.experts = experts.get();
    args.weights = weights.get();
    args.chosen = chosen.get();
    args.slots = slots.get();
    args.sent = for_nodes ? sent.get() : nullptr;
    args.counts = counts.get();
    const DeviceArray<std::int32_t> scratch(
        static_cast<std::size_t>(cuda::group_scratch_ints(args.num_counts())));
    args.scratch = scratch.get();
    cuda::route(nullptr, args);
    expect_success(cudaDeviceSynchronize());
  }
  compute::ReplicaTable table() const { return {first_of_expert.get(), replicas.get()}; }

  std::size_t tokens;
  DeviceArray<std::int32_t> first_of_expert;
  DeviceArray<compute::ReplicaPlace> replicas;
  DeviceArray<std::int32_t> first_of_node;
  DeviceArray<std::int32_t> experts;
  DeviceArray<float> weights;
  DeviceArray<std::int32_t> chosen, slots, sent, counts;
};

}  // namespace atl::testing
