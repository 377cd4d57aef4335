#include "app/run/report_traffic.hpp"

#include <algorithm>

namespace atl {

using nlohmann::json;

namespace {

using Matrix = std::vector<std::vector<std::int64_t>>;

/// [nodes][nodes]: what the ranks of one node sent to those of another.
Matrix by_node(const Matrix& by_rank, const JobLayout& layout) {
  const auto nodes = static_cast<std::size_t>(layout.num_nodes());
  Matrix sums(nodes, std::vector<std::int64_t>(nodes));
  for (std::size_t from = 0; from < by_rank.size(); ++from) {
    auto& row = sums[static_cast<std::size_t>(layout.node_of(static_cast<int>(from)))];
    for (std::size_t to = 0; to < by_rank[from].size(); ++to) {
      row[static_cast<std::size_t>(layout.node_of(static_cast<int>(to)))] += by_rank[from][to];
    }
  }
  return sums;
}

/// The same where the columns are nodes already.
Matrix by_sending_node(const Matrix& by_rank, const JobLayout& layout) {
  const auto nodes = static_cast<std::size_t>(layout.num_nodes());
  Matrix sums(nodes, std::vector<std::int64_t>(nodes));
  for (std::size_t from = 0; from < by_rank.size(); ++from) {
    auto& row = sums[static_cast<std::size_t>(layout.node_of(static_cast<int>(from)))];
    for (std::size_t to = 0; to < nodes; ++to) row[to] += by_rank[from][to];
  }
  return sums;
}

/// Rows that go out and as many that come back, in bytes.
Matrix both_ways(const Matrix& rows, std::int64_t row_bytes) {
  Matrix bytes = rows;
  for (std::size_t from = 0; from < rows.size(); ++from) {
    for (std::size_t to = 0; to < rows.size(); ++to) {
      bytes[from][to] = (rows[from][to] + rows[to][from]) * row_bytes;
    }
  }
  return bytes;
}

std::int64_t between(const Matrix& bytes) {
  std::int64_t sum = 0;
  for (std::size_t from = 0; from < bytes.size(); ++from) {
    for (std::size_t to = 0; to < bytes.size(); ++to) sum += from == to ? 0 : bytes[from][to];
  }
  return sum;
}

/// The most that one node sends to all others, or gets from them.
std::int64_t busiest_link(const Matrix& bytes) {
  std::int64_t most = 0;
  for (std::size_t node = 0; node < bytes.size(); ++node) {
    std::int64_t out = 0;
    std::int64_t in = 0;
    for (std::size_t other = 0; other < bytes.size(); ++other) {
      if (other == node) continue;
      out += bytes[node][other];
      in += bytes[other][node];
    }
    most = std::max({most, out, in});
  }
  return most;
}

json link_json(const Matrix& bytes) {
  return {{"bytes_between_nodes", between(bytes)}, {"busiest_link_bytes", busiest_link(bytes)}};
}

json hop_json(const HopTraffic& hop) {
  return {{"rows", hop.rows}, {"bytes", hop.bytes}};
}

void add_links(json& report, const AllTraffic& traffic, const RunFacts& facts) {
  const JobLayout& layout = *facts.job;
  const Matrix nodes = by_node(traffic.bytes_to, layout);
  std::int64_t inside = 0;
  for (std::size_t node = 0; node < nodes.size(); ++node) inside += nodes[node][node];
  report["bytes_from_node_to_node"] = nodes;
  report["bytes_from_to"] = traffic.bytes_to;
  report["bytes_inside_nodes"] = inside;
  report["bytes_between_nodes"] = between(nodes);
  const auto row_bytes =
      facts.config->shape.hidden * static_cast<std::int64_t>(size_of(facts.dtype));
  const auto& hops = traffic.sum.hops;
  report["exchange"] = {
      {"row_bytes", row_bytes},
      {"sent",
       {{"flat", hop_json(hops[static_cast<std::size_t>(Share::exchange)])},
        {"between_nodes", hop_json(hops[static_cast<std::size_t>(Share::rail)])},
        {"inside_nodes", hop_json(hops[static_cast<std::size_t>(Share::node)])},
        {"attention", hop_json(hops[static_cast<std::size_t>(Share::owner)])},
        {"experts_of_several_ranks", hop_json(hops[static_cast<std::size_t>(Share::holder)])},
        {"stages", hop_json(hops[static_cast<std::size_t>(Share::pipe)])}}},
      {"measured", link_json(nodes)},
      {"flat_would", link_json(both_ways(by_node(traffic.flat_rows_to, layout), row_bytes))},
      {"one_row_per_token_and_node",
       link_json(both_ways(by_sending_node(traffic.node_rows_to, layout), row_bytes))}};
}

/// [layers * most places]: a layer's replicas expert by expert, there by rank. Places differ
/// between networks whose nodes differ, this order does not.
std::vector<std::int64_t> rows_by_expert(const Traffic& traffic, const Placement& placement) {
  std::vector<std::int64_t> rows(traffic.rows_of_replica.size());
  for (std::size_t layer = 0; layer < placement.kind_of_layer.size(); ++layer) {
    if (placement.kind_of_layer[layer] < 0) continue;
    const LayerPlacement& kind = placement.of(static_cast<int>(layer));
    const std::size_t first = layer * traffic.most_places;
    std::size_t next = first;
    for (std::size_t expert = 0; expert < kind.ranks_of_expert().size(); ++expert) {
      for (const int rank : kind.ranks_of_expert()[expert]) {
        const int place = kind.place_of(static_cast<int>(expert), rank);
        rows[next++] = traffic.rows_of_replica[first + static_cast<std::size_t>(place)];
      }
    }
  }
  return rows;
}

/// The rows that each replica of an expert got, of rows_by_expert().
json replica_rows(const LayerPlacement& placement, const Traffic& traffic, int layer) {
  json rows = json::array();
  auto next = traffic.rows_of_replica.begin() +
              static_cast<std::ptrdiff_t>(static_cast<std::size_t>(layer) * traffic.most_places);
  for (const std::vector<int>& ranks : placement.ranks_of_expert()) {
    json of_expert = json::array();
    for (std::size_t i = 0; i < ranks.size(); ++i) of_expert.push_back(*next++);
    rows.push_back(of_expert);
  }
  return rows;
}

void add_experts(json& report, const AllTraffic& traffic, const RunFacts& facts) {
  const ModelShape& shape = facts.config->shape;
  json layers = json::array();
  json placed = json::array();
  std::vector<std::int64_t> totals(static_cast<std::size_t>(shape.num_experts));
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    if (shape.is_dense(layer)) continue;
    json row = json::array();
    for (int expert = 0; expert < shape.num_experts; ++expert) {
      const auto count =
          traffic.sum
              .tokens_of_expert[static_cast<std::size_t>(layer * shape.num_experts + expert)];
      row.push_back(count);
      totals[static_cast<std::size_t>(expert)] += count;
    }
    layers.push_back({{"layer", layer}, {"tokens", row}});
    const LayerPlacement& placement = facts.placement->of(layer);
    placed.push_back({{"layer", layer},
                      {"ranks_of_expert", placement.ranks_of_expert()},
                      {"rows_of_replica", replica_rows(placement, traffic.sum, layer)}});
  }
  json hottest = json::array();
  constexpr std::size_t most = 8;
  for (const HotExpert& hot : hot_experts(traffic.sum.tokens_of_expert, shape.num_experts, most)) {
    hottest.push_back({{"layer", hot.layer}, {"expert", hot.expert}, {"over_mean", hot.over_mean}});
  }
  report["tokens_per_expert"] = {{"total", totals}, {"by_layer", layers}, {"hottest", hottest}};
  report["placement"] = {
      {"most_experts_of_a_layer_on_a_rank", facts.placement->most_experts_on_a_rank()},
      {"one_expert_per_rank", !facts.placement->several_per_rank()},
      {"layers", placed}};
}

}  // namespace

AllTraffic gather_traffic(const comm::Communicator& world, const Traffic& mine,
                          const Placement& placement) {
  AllTraffic all;
  const auto gather = [&](const std::vector<std::int64_t>& values) {
    return world.gather_vectors(std::span<const std::int64_t>(values), 0);
  };
  all.bytes_to = gather(mine.bytes_to);
  all.flat_rows_to = gather(mine.flat_rows_to);
  all.node_rows_to = gather(mine.node_rows_to);
  all.sum = mine;
  all.sum.rows_of_replica = rows_by_expert(mine, placement);
  using comm::Communicator;
  world.allreduce(std::span(all.sum.tokens_of_expert), Communicator::Reduce::sum);
  world.allreduce(std::span(all.sum.rows_of_replica), Communicator::Reduce::sum);
  for (HopTraffic& hop : all.sum.hops) {
    std::array<std::int64_t, 2> numbers = {hop.rows, hop.bytes};
    world.allreduce(std::span(numbers), Communicator::Reduce::sum);
    hop = {numbers[0], numbers[1]};
  }
  return all;
}

namespace {

/// Null where each rank has attention alone.
json output_json(const RunFacts& facts) {
  if (facts.job->division().tp == 1) return nullptr;
  json output = {{"has", name_of(facts.output)}};
  if (facts.output == compute::OutputCut::either) {
    output["passes_by_rows"] = facts.passes_by_output[0];
    output["passes_by_columns"] = facts.passes_by_output[1];
  }
  return output;
}

}  // namespace

json layout_json(const RunFacts& facts) {
  const JobLayout& job = *facts.job;
  const ModelShape& shape = facts.config->shape;
  const Division& d = job.division();
  json stages = json::array();
  for (int stage = 0; stage < d.pp; ++stage) {
    const LayerRange layers = layers_of_stage(shape.num_layers, stage, d.pp);
    stages.push_back({layers.first, layers.end - 1});
  }
  return {{"replicas", d.replicas},
          {"pp", d.pp},
          {"tp", d.tp},
          {"expert_tp", d.expert_tp},
          {"tp_output", output_json(facts)},
          {"ep", job.ranks_of_exchange()},
          {"layers_of_stage", stages}};
}

void add_traffic(json& report, const AllTraffic& traffic, const RunFacts& facts) {
  add_experts(report, traffic, facts);
  add_links(report, traffic, facts);
}

}  // namespace atl
