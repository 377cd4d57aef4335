#include "app/plan/replica_search.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "app/plan/random.hpp"

namespace atl {

namespace {

using ExpertsOfRank = std::vector<std::vector<int>>;  // [ranks]

/// A try costs about so many numbers for each expert that a token has on each node.
constexpr std::int64_t work_of_a_choice = 4;

ExpertsOfRank by_rank(const RanksOfExpert& ranks_of_expert, int num_ranks) {
  ExpertsOfRank experts(static_cast<std::size_t>(num_ranks));
  for (std::size_t expert = 0; expert < ranks_of_expert.size(); ++expert) {
    for (const int rank : ranks_of_expert[expert])
      experts[static_cast<std::size_t>(rank)].push_back(static_cast<int>(expert));
  }
  return experts;
}

RanksOfExpert by_expert(const ExpertsOfRank& experts, std::size_t num_experts) {
  RanksOfExpert ranks(num_experts);
  for (std::size_t rank = 0; rank < experts.size(); ++rank) {
    for (const int expert : experts[rank])
      ranks[static_cast<std::size_t>(expert)].push_back(static_cast<int>(rank));
  }
  return ranks;
}

bool has(const std::vector<int>& experts, int expert) {
  return std::find(experts.begin(), experts.end(), expert) != experts.end();
}

/// Another placement by one change; false where the one that was drawn cannot be.
bool change(ExpertsOfRank& experts, std::vector<int>& replicas, Random& random) {
  auto& one = experts[random.below(experts.size())];
  if (one.empty()) return false;
  int& given = one[random.below(one.size())];
  if (random.below(4) == 0) {
    const auto other = static_cast<int>(random.below(replicas.size()));
    if (replicas[static_cast<std::size_t>(given)] == 1 || has(one, other)) return false;
    --replicas[static_cast<std::size_t>(given)];
    ++replicas[static_cast<std::size_t>(other)];
    given = other;
    return true;
  }
  auto& two = experts[random.below(experts.size())];
  if (two.empty()) return false;
  int& taken = two[random.below(two.size())];
  if (has(two, given) || has(one, taken)) return false;
  std::swap(given, taken);
  return true;
}

}  // namespace

RanksOfExpert search_replicas(const ExpertChoices& choices, const RanksOfExpert& ranks_of_expert,
                              const PlacementRules& rules) {
  const std::size_t num_experts = ranks_of_expert.size();
  const auto cost = [&](const RanksOfExpert& ranks) {
    const LayerLoads loads = loads_of(choices, ranks, rules.layout, rules.route);
    return std::pair(loads.link, loads.rank);
  };
  const std::int64_t of_a_try = work_of_a_choice *
                                    static_cast<std::int64_t>(choices.experts.size()) *
                                    rules.layout.num_nodes() +
                                static_cast<std::int64_t>(num_experts) * rules.layout.num_ranks();
  Random random(rules.seed);
  ExpertsOfRank best = by_rank(ranks_of_expert, rules.layout.num_ranks());
  std::vector<int> replicas;
  for (const auto& ranks : ranks_of_expert) replicas.push_back(static_cast<int>(ranks.size()));
  auto least = cost(ranks_of_expert);
  for (std::int64_t left = rules.work / of_a_try; left > 0; --left) {
    ExpertsOfRank tried = best;
    std::vector<int> replicas_then = replicas;
    if (!change(tried, replicas_then, random)) continue;
    const auto now = cost(by_expert(tried, num_experts));
    if (now > least) continue;  // level ground is crossed
    least = now;
    best = std::move(tried);
    replicas = std::move(replicas_then);
  }
  return by_expert(best, num_experts);
}

}  // namespace atl
