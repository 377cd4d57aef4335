#include "app/plan/dag.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

namespace atl {

namespace {

std::string bytes_text(std::int64_t bytes) {
  if (bytes < 1'000'000) return fmt::format("{:.1f} kB", static_cast<double>(bytes) * 1e-3);
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) * 1e-6);
}

std::int64_t sent_bytes(const GraphStep& step) {
  std::int64_t sum = 0;
  for (const Transfer& t : step.sends) sum += t.bytes;
  return sum;
}

/// "[8, 7168]", or "[6 to 11, 7168]".
std::string shape_text(std::int64_t least, std::int64_t most, const Tensor& tensor) {
  const std::string rows =
      least == most ? std::to_string(least) : fmt::format("{} to {}", least, most);
  return fmt::format("{} [{}, {}] {}", tensor.name, rows, tensor.columns, tensor.type);
}

/// Steps of ranks or layers that are shown as one.
struct Fold {
  const GraphStep* first = nullptr;
  std::int64_t in_least = std::numeric_limits<std::int64_t>::max(), in_most = 0;
  std::int64_t out_least = in_least, out_most = 0;
  std::int64_t sent_least = in_least, sent_most = 0;
  std::size_t peers = 0;
  std::set<std::int32_t> ranks, layers, chunks;

  void add(std::int32_t rank, const GraphStep& step) {
    if (first == nullptr) first = &step;
    in_least = std::min(in_least, step.in.rows);
    in_most = std::max(in_most, step.in.rows);
    out_least = std::min(out_least, step.out.rows);
    out_most = std::max(out_most, step.out.rows);
    sent_least = std::min(sent_least, sent_bytes(step));
    sent_most = std::max(sent_most, sent_bytes(step));
    peers = std::max(peers, step.sends.size());
    ranks.insert(rank);
    layers.insert(step.step.layer);
    chunks.insert(step.step.chunk);
  }

  std::vector<std::string> lines() const {
    std::vector<std::string> lines = {std::string(name_of(first->step.kind))};
    lines.push_back(*ranks.begin() == *ranks.rbegin()
                        ? fmt::format("GPU {}", *ranks.begin())
                        : fmt::format("GPU {} to {}", *ranks.begin(), *ranks.rbegin()));
    if (first->exchange()) {
      lines.push_back(fmt::format("{} peers, {}{} each", peers,
                                  sent_least == sent_most ? "" : bytes_text(sent_least) + " to ",
                                  bytes_text(sent_most)));
    }
    lines.push_back(shape_text(in_least, in_most, first->in));
    if (first->out != first->in) {
      lines.push_back("to " + shape_text(out_least, out_most, first->out));
    }
    return lines;
  }
};

/// "2 to 60", "0, 1, 2".
std::string numbers_text(const std::set<std::int32_t>& numbers) {
  const std::int32_t first = *numbers.begin(), last = *numbers.rbegin();
  if (first == last) return std::to_string(first);
  if (last - first + 1 == static_cast<std::int32_t>(numbers.size())) {
    return fmt::format("{} to {}", first, last);
  }
  return fmt::format("{}", fmt::join(numbers, ", "));
}

/// The rank of the first stage whose experts have the median of rows.
const RankGraph& usual_rank(const PlanGraph& graph) {
  std::vector<std::pair<std::int64_t, std::size_t>> rows;
  for (std::size_t r = 0; r < graph.ranks.size(); ++r) {
    if (graph.ranks[r].stage != graph.ranks.front().stage) continue;
    std::int64_t sum = 0;
    for (const GraphStep& s : graph.ranks[r].steps) sum += s.expert_rows;
    rows.emplace_back(sum, r);
  }
  std::nth_element(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(rows.size() / 2),
                   rows.end());
  return graph.ranks[rows[rows.size() / 2].second];
}

/// The first layer with a router.
int moe_layer(const RankGraph& rank) {
  for (const GraphStep& s : rank.steps) {
    if (s.step.kind == StepKind::route) return s.step.layer;
  }
  return rank.steps.size() > 1 ? rank.steps[1].step.layer : -1;
}

DagNode node_of(const RankGraph& rank, const GraphStep& step) {
  Fold fold;
  fold.add(rank.rank, step);
  DagNode node;
  node.id = fmt::format("r{}_{}", rank.rank, step.step.name());
  std::replace(node.id.begin(), node.id.end(), ' ', '_');
  std::replace(node.id.begin(), node.id.end(), '-', '_');
  node.lines = fold.lines();
  node.lines.front() = step.step.name();
  node.communication = step.exchange();
  return node;
}

/// Some steps of a rank, with the dependencies among them.
Dag steps_dag(const RankGraph& rank, const std::vector<std::size_t>& steps) {
  Dag dag;
  std::map<std::int32_t, std::int32_t> at;
  for (const std::size_t i : steps) {
    const GraphStep& step = rank.steps[i];
    at[static_cast<std::int32_t>(i)] = static_cast<std::int32_t>(dag.nodes.size());
    dag.nodes.push_back(node_of(rank, step));
    for (const std::int32_t dep : step.step.deps) {
      const auto found = at.find(dep);
      if (found == at.end()) continue;
      const bool message = step.exchange() || rank.steps[static_cast<std::size_t>(dep)].exchange();
      dag.edges.push_back(
          {found->second, static_cast<std::int32_t>(dag.nodes.size()) - 1, message, ""});
    }
  }
  return dag;
}

}  // namespace

Dag complete_deployment_dag(const PlanGraph& graph) {
  Dag dag;
  dag.name = "complete_deployment_dag";
  dag.title = fmt::format("every operation of {} GPUs", graph.ranks.size());
  std::map<std::tuple<Share, std::int32_t, StepKind, int, int>, std::int32_t> exchanges;
  for (const RankGraph& rank : graph.ranks) {
    std::vector<std::int32_t> at;
    std::vector<std::int32_t> hubs;  // of the steps so far; -1: none
    for (const GraphStep& step : rank.steps) {
      hubs.push_back(-1);
      const auto number = static_cast<std::int32_t>(dag.nodes.size());
      at.push_back(number);
      dag.nodes.push_back(node_of(rank, step));
      for (const std::int32_t dep : step.step.deps) {
        dag.edges.push_back({at[static_cast<std::size_t>(dep)], number, false, ""});
        const std::int32_t hub = hubs[static_cast<std::size_t>(dep)];
        if (hub >= 0) dag.edges.push_back({hub, number, true, ""});
      }
      if (step.sends.empty() && step.receives.empty()) continue;
      StepKind kind = step.step.kind;
      if (kind == StepKind::receive) kind = StepKind::forward;
      const auto key = std::tuple(step.share, step.group, kind, static_cast<int>(step.step.layer),
                                  static_cast<int>(step.step.chunk));
      const auto [hub, added] =
          exchanges.try_emplace(key, static_cast<std::int32_t>(dag.nodes.size()));
      if (added) {
        dag.nodes.push_back({fmt::format("x{}", exchanges.size()),
                             {std::string(name_of(kind)), fmt::format("group {}", step.group)},
                             true});
      }
      if (!step.receives.empty()) hubs.back() = hub->second;
      if (!step.sends.empty()) {
        dag.edges.push_back({number, hub->second, true, bytes_text(sent_bytes(step))});
      }
    }
  }
  return dag;
}

Dag folded_deployment_dag(const PlanGraph& graph) {
  Dag dag;
  dag.name = "complete_deployment_dag";
  // [stage][kind of layer: 0 before, 1 dense, 2 MoE, 3 behind][kind of step]
  std::map<std::tuple<int, int>, std::vector<std::pair<StepKind, Fold>>> folds;
  std::map<std::tuple<int, int>, bool> is_moe;
  for (const RankGraph& rank : graph.ranks) {
    for (const GraphStep& s : rank.steps) {
      if (s.step.kind == StepKind::route) is_moe[{rank.stage, s.step.layer}] = true;
    }
  }
  for (const RankGraph& rank : graph.ranks) {
    for (const GraphStep& s : rank.steps) {
      const bool first = s.step.kind == StepKind::embed || s.step.kind == StepKind::receive;
      const int part = s.step.layer < 0                              ? (first ? 0 : 3)
                       : is_moe.contains({rank.stage, s.step.layer}) ? 2
                                                                     : 1;
      auto& list = folds[{rank.stage, part}];
      auto found = std::find_if(list.begin(), list.end(),
                                [&](const auto& entry) { return entry.first == s.step.kind; });
      if (found == list.end()) {
        list.emplace_back(s.step.kind, Fold{});
        found = list.end() - 1;
      }
      found->second.add(rank.rank, s);
    }
  }
  std::int32_t before = -1;
  bool before_message = false;
  for (auto& [key, list] : folds) {
    const auto& [stage, part] = key;
    for (auto& [kind, fold] : list) {
      DagNode node{fmt::format("s{}_{}_{}", stage, part, static_cast<int>(kind)), fold.lines(),
                   fold.first->exchange()};
      if (part == 1 || part == 2) {
        node.lines.front() +=
            fmt::format(", layers {} ({} times)", numbers_text(fold.layers), fold.layers.size());
      }
      if (fold.chunks.size() > 1) {
        node.lines.front() += fmt::format(", {} chunks", fold.chunks.size());
      }
      const auto number = static_cast<std::int32_t>(dag.nodes.size());
      const bool message = node.communication;
      dag.nodes.push_back(std::move(node));
      if (before >= 0) dag.edges.push_back({before, number, message || before_message, ""});
      before = number;
      before_message = message;
    }
  }
  dag.title = fmt::format("{} GPUs, folded: what is alike on ranks, layers and chunks is one box",
                          graph.ranks.size());
  return dag;
}

Dag comprehensive_moe_dag(const PlanGraph& graph) {
  const RankGraph& rank = usual_rank(graph);
  std::vector<std::size_t> steps;
  for (std::size_t i = 0; i < rank.steps.size(); ++i) {
    if (rank.steps[i].step.chunk == 0) steps.push_back(i);
  }
  Dag dag = steps_dag(rank, steps);
  dag.name = "comprehensive_moe_dag";
  dag.title =
      fmt::format("all layers of GPU {}, the first of {} chunks", rank.rank, graph.num_chunks);
  return dag;
}

Dag simplified_moe_dag(const PlanGraph& graph) {
  const RankGraph& rank = usual_rank(graph);
  const int layer = moe_layer(rank);
  std::vector<std::size_t> steps;
  for (std::size_t i = 0; i < rank.steps.size(); ++i) {
    const Step& step = rank.steps[i].step;
    if (step.chunk == 0 && step.layer == layer) steps.push_back(i);
  }
  Dag dag = steps_dag(rank, steps);
  dag.name = "simplified_moe_dag";
  dag.title =
      fmt::format("layer {} of GPU {}, the first of {} chunks", layer, rank.rank, graph.num_chunks);
  return dag;
}

Dag detailed_expert_dag(const PlanGraph& graph) {
  constexpr std::size_t shown_ranks = 4;
  const RankGraph& usual = usual_rank(graph);
  const int layer = moe_layer(usual);
  // That rank, and those that it sends most rows to.
  std::vector<std::pair<std::int64_t, std::int32_t>> peers;
  for (const GraphStep& s : usual.steps) {
    if (s.step.layer != layer || s.step.chunk != 0 || s.step.kind != StepKind::dispatch) continue;
    for (const Transfer& t : s.sends) peers.emplace_back(-t.rows, t.peer);
  }
  std::sort(peers.begin(), peers.end());
  std::vector<std::int32_t> shown = {usual.rank};
  for (std::size_t i = 0; i < peers.size() && shown.size() < shown_ranks; ++i) {
    shown.push_back(peers[i].second);
  }
  Dag dag;
  dag.name = "detailed_expert_dag";
  dag.title = fmt::format("layer {}, from router to merge, on GPUs {} of {}; rows between them",
                          layer, fmt::join(shown, ", "), graph.ranks.size());
  std::map<std::pair<std::int32_t, StepKind>, std::int32_t> at;
  for (const std::int32_t number : shown) {
    const auto rank = std::find_if(graph.ranks.begin(), graph.ranks.end(),
                                   [&](const RankGraph& r) { return r.rank == number; });
    std::vector<std::size_t> steps;
    for (std::size_t i = 0; i < rank->steps.size(); ++i) {
      const Step& step = rank->steps[i].step;
      const bool wanted = step.chunk == 0 && step.layer == layer && step.kind >= StepKind::route &&
                          step.kind <= StepKind::merge;
      if (wanted) steps.push_back(i);
    }
    const Dag own = steps_dag(*rank, steps);
    const auto before = static_cast<std::int32_t>(dag.nodes.size());
    for (std::size_t i = 0; i < steps.size(); ++i) {
      at[{number, rank->steps[steps[i]].step.kind}] = before + static_cast<std::int32_t>(i);
      dag.nodes.push_back(own.nodes[i]);
    }
    for (DagEdge edge : own.edges) {
      edge.from += before;
      edge.to += before;
      dag.edges.push_back(edge);
    }
  }
  for (const RankGraph& rank : graph.ranks) {
    for (const GraphStep& s : rank.steps) {
      if (s.step.layer != layer || s.step.chunk != 0) continue;
      const bool there = s.step.kind == StepKind::dispatch;
      if (!there && s.step.kind != StepKind::combine) continue;
      for (const Transfer& t : s.sends) {
        const auto from = at.find({rank.rank, s.step.kind});
        const auto to = at.find({t.peer, there ? StepKind::experts : StepKind::merge});
        if (from == at.end() || to == at.end()) continue;
        dag.edges.push_back({from->second, to->second, true, fmt::format("{} rows", t.rows)});
      }
    }
  }
  return dag;
}

}  // namespace atl
