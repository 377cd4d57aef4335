#include "app/plan/job_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "compute/error.hpp"

namespace atl {

namespace {

/// The divisors of `number` that also `fits` takes, for a message.
template <class Fits>
std::string divisors_of(int number, const Fits& fits) {
  std::string text;
  for (int d = 1; d <= number; ++d) {
    if (number % d != 0 || !fits(d)) continue;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", d);
  }
  return text;
}

void require_ranks_divide(int ranks, const Division& d) {
  require(ranks % d.replicas == 0, "--replicas {} does not divide {} ranks; try {}", d.replicas,
          ranks, divisors_of(ranks, [](int) { return true; }));
  const int network = ranks / d.replicas;
  require(network % d.pp == 0, "--pp {} does not divide the {} ranks of a network; try {}", d.pp,
          network, divisors_of(network, [](int) { return true; }));
  const int stage = network / d.pp;
  for (const auto& [name, value] :
       {std::pair{"--tp", d.tp}, std::pair{"--expert-tp", d.expert_tp}}) {
    require(stage % value == 0, "{} {} does not divide the {} ranks of a stage; try {}", name,
            value, stage, divisors_of(stage, [](int) { return true; }));
  }
}

}  // namespace

JobLayout::JobLayout(const Division& division, const std::vector<int>& node_of)
    : division_(division),
      node_of_(node_of),
      num_nodes_(1 + *std::max_element(node_of.begin(), node_of.end())) {
  const int ranks = num_ranks();
  require_ranks_divide(ranks, division);
  const int stage = ranks_of_stage();
  const auto by = [&](Share share, auto&& group_of_rank) {
    std::vector<std::int32_t> group_of;
    for (int rank = 0; rank < ranks; ++rank) group_of.push_back(group_of_rank(rank));
    groups_[static_cast<std::size_t>(share)] = grouped(std::move(group_of));
  };
  const int network = stage * division.pp;
  by(Share::network, [&](int rank) { return rank / network; });
  by(Share::stage, [&](int rank) { return rank / stage; });
  by(Share::owner, [&](int rank) { return rank / division.tp; });
  by(Share::holder, [&](int rank) { return rank / division.expert_tp; });
  by(Share::exchange,
     [&](int rank) { return rank / stage * division.expert_tp + rank % division.expert_tp; });
  const int owners = stage / division.tp;  // of a stage
  by(Share::sequences,
     [&](int rank) { return rank / network * owners + rank % stage / division.tp; });
  by(Share::pipe, [&](int rank) { return rank / network * stage + rank % stage; });
}

int JobLayout::stage_of(int rank) const {
  return of(Share::stage).group_of[static_cast<std::size_t>(rank)] % division_.pp;
}

Layout JobLayout::exchange_of(int rank) const {
  std::map<int, int> number_of;  // node -> its number among these ranks
  std::vector<int> nodes;
  for (const int member : of(Share::exchange).group_with(rank)) {
    const int node = node_of_[static_cast<std::size_t>(member)];
    const auto found = number_of.emplace(node, static_cast<int>(number_of.size())).first;
    nodes.push_back(found->second);
  }
  return make_layout(nodes);
}

LayerRange layers_of_stage(int num_layers, int stage, int num_stages) {
  return {num_layers * stage / num_stages, num_layers * (stage + 1) / num_stages};
}

void require_divides(const Division& d, const ModelShape& shape) {
  require(d.pp <= shape.num_layers, "--pp {} gives some stage none of the model's {} layers", d.pp,
          shape.num_layers);
  require(shape.num_heads % d.tp == 0, "--tp {} does not divide the model's {} heads; try {}", d.tp,
          shape.num_heads,
          divisors_of(shape.num_heads, [&](int n) { return shape.hidden % n == 0; }));
  require(shape.hidden % d.tp == 0, "--tp {} does not divide the model's hidden size {}; try {}",
          d.tp, shape.hidden,
          divisors_of(shape.num_heads, [&](int n) { return shape.hidden % n == 0; }));
  const auto cuts_experts = [&](int n) {
    return shape.hidden % n == 0 && shape.moe_intermediate % n == 0;
  };
  require(cuts_experts(d.expert_tp),
          "--expert-tp {} does not divide hidden size {} and the {} inner columns of an expert; "
          "try {}",
          d.expert_tp, shape.hidden, shape.moe_intermediate,
          divisors_of(shape.moe_intermediate, cuts_experts));
}

namespace {

/// "0" or "0-7" or "0,8,16": ranks of a group.
std::string ranks_text(const std::vector<int>& ranks) {
  std::string text;
  for (std::size_t i = 0; i < ranks.size();) {
    std::size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ",", ranks[i]);
    if (end > i + 1) text += fmt::format("-{}", ranks[end - 1]);
    i = end;
  }
  return text;
}

}  // namespace

std::string text_of(const JobLayout& layout, const ModelShape& shape) {
  const Division& d = layout.division();
  std::string text = fmt::format(
      "{} ranks: {} network{} x {} stage{} x {} ranks; attention over {}, experts over {} x {}\n",
      layout.num_ranks(), d.replicas, d.replicas == 1 ? "" : "s", d.pp, d.pp == 1 ? "" : "s",
      layout.ranks_of_stage(), d.tp, layout.ranks_of_exchange(), d.expert_tp);
  text += fmt::format("{:>7} {:>5} {:>8}  {:<12} {:<12} {}\n", "network", "stage", "layers",
                      "attention", "an expert", "experts' rows between");
  const Grouping& owners = layout.of(Share::owner);
  for (const std::vector<int>& members : owners.members) {
    const int rank = members.front();
    const LayerRange layers = layers_of_stage(shape.num_layers, layout.stage_of(rank), d.pp);
    text += fmt::format("{:>7} {:>5} {:>8}  {:<12} {:<12} {}\n",
                        layout.of(Share::network).group_of[static_cast<std::size_t>(rank)],
                        layout.stage_of(rank), fmt::format("{}-{}", layers.first, layers.end - 1),
                        ranks_text(members), ranks_text(layout.of(Share::holder).group_with(rank)),
                        ranks_text(layout.of(Share::exchange).group_with(rank)));
  }
  return text;
}

}  // namespace atl
