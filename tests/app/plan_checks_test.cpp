#include "app/plan/plan_checks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "app/model/model_config.hpp"
#include "app/plan/dag.hpp"
#include "tests/app/planned.hpp"

namespace atl {
namespace {

bool has(const PlanGraph& graph, PlanFault fault) {
  const auto findings = check_plan(graph);
  return std::any_of(findings.begin(), findings.end(),
                     [&](const PlanFinding& f) { return f.fault == fault; });
}

/// The step of a rank, by its name.
GraphStep& step_of(PlanGraph& graph, std::size_t rank, const std::string& name) {
  auto& steps = graph.ranks[rank].steps;
  const auto found = std::find_if(steps.begin(), steps.end(),
                                  [&](const GraphStep& s) { return s.step.name() == name; });
  if (found == steps.end()) throw Error("no step " + name);
  return *found;
}

std::size_t index_of(const PlanGraph& graph, std::size_t rank, const std::string& name) {
  const auto& steps = graph.ranks[rank].steps;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].step.name() == name) return i;
  }
  throw Error("no step " + name);
}

TEST(PlanChecks, FindNothingInWhatThePlannerMakes) {
  for (const Division& division : {Division{1, 1, 1, 1}, Division{2, 1, 2, 1}, Division{1, 2, 2, 1},
                                   Division{1, 1, 2, 2}, Division{1, 2, 4, 4}}) {
    for (const Route route : {Route::flat, Route::nodes}) {
      for (const bool overlap : {true, false}) {
        const Planned planned(division, overlap);
        const auto findings = check_plan(planned.graph(route, 3));
        EXPECT_TRUE(findings.empty()) << findings.front().text;
      }
    }
  }
}

struct Mutation {
  const char* name;
  PlanFault fault;
  std::function<void(PlanGraph&)> change;
};

/// Two steps of a rank change places; what waits for one waits for it where it is now.
void swap_steps(PlanGraph& graph, std::size_t rank, std::size_t a, std::size_t b) {
  auto& steps = graph.ranks[rank].steps;
  std::swap(steps[a], steps[b]);
  for (GraphStep& step : steps) {
    for (std::int32_t& dep : step.step.deps) {
      if (dep == static_cast<std::int32_t>(a)) {
        dep = static_cast<std::int32_t>(b);
      } else if (dep == static_cast<std::int32_t>(b)) {
        dep = static_cast<std::int32_t>(a);
      }
    }
  }
}

std::vector<Mutation> mutations() {
  return {
      {"an operation on a GPU that is not there", PlanFault::no_device,
       [](PlanGraph& g) { g.ranks[3].rank = 99; }},
      {"a step twice", PlanFault::twice,
       [](PlanGraph& g) { g.ranks[2].steps.push_back(step_of(g, 2, "L1 c0 experts")); }},
      {"a dependency on nothing", PlanFault::unknown_dependency,
       [](PlanGraph& g) { step_of(g, 1, "L2 c1 route").step.deps.push_back(100000); }},
      {"a back edge", PlanFault::cycle,
       [](PlanGraph& g) {
         const auto merge = index_of(g, 0, "L1 c0 merge");
         step_of(g, 0, "L1 c0 attention").step.deps.push_back(static_cast<std::int32_t>(merge));
       }},
      {"an operation that nothing leads to", PlanFault::unconnected,
       [](PlanGraph& g) { step_of(g, 4, "L1 c0 merge").step.deps.clear(); }},
      {"an operation that nothing follows", PlanFault::unconnected,
       [](PlanGraph& g) {
         const auto merge = static_cast<std::int32_t>(index_of(g, 4, "L1 c0 merge"));
         auto& deps = step_of(g, 4, "L2 c0 attention").step.deps;
         std::replace(deps.begin(), deps.end(), merge, merge - 1);
       }},
      {"a wrong shape", PlanFault::shapes_differ,
       [](PlanGraph& g) { step_of(g, 5, "L1 c0 experts").out.columns /= 2; }},
      {"a wrong type", PlanFault::shapes_differ,
       [](PlanGraph& g) { step_of(g, 5, "L1 c0 dispatch").in.type = "f32"; }},
      {"a dropped receive", PlanFault::no_receive,
       [](PlanGraph& g) { step_of(g, 6, "L1 c0 dispatch").receives.pop_back(); }},
      {"a dropped send", PlanFault::no_send,
       [](PlanGraph& g) { step_of(g, 6, "L2 c1 combine").sends.pop_back(); }},
      {"a shorter receive", PlanFault::sizes_differ,
       [](PlanGraph& g) { step_of(g, 1, "L1 c0 dispatch").receives.front().rows -= 1; }},
      {"a message to itself", PlanFault::to_itself,
       [](PlanGraph& g) { step_of(g, 1, "L1 c0 dispatch").sends.front().peer = 1; }},
      {"swapped moves", PlanFault::order_differs,
       [](PlanGraph& g) {
         swap_steps(g, 3, index_of(g, 3, "L1 c0 combine"), index_of(g, 3, "L2 c0 dispatch"));
       }},
      {"a message to another network", PlanFault::outside_group,
       [](PlanGraph& g) { step_of(g, 1, "L1 c0 dispatch").sends.front().peer = 12; }},
      {"a message of arithmetic", PlanFault::outside_group,
       [](PlanGraph& g) {
         step_of(g, 1, "L1 c0 experts").sends.push_back({2, 1, 64});
       }},
      {"more rows than MPI counts", PlanFault::too_many_rows,
       [](PlanGraph& g) {
         step_of(g, 0, "L1 c0 dispatch").sends.front().rows = std::int64_t{1} << 31;
       }},
      {"a shrunk receive buffer", PlanFault::too_small,
       [](PlanGraph& g) { g.ranks[2].room.receive_rows = 1; }},
      {"a shrunk chunk", PlanFault::too_small,
       [](PlanGraph& g) { g.ranks[2].room.chunk_tokens = 1; }},
      {"rows that no expert computes", PlanFault::rows_lost,
       [](PlanGraph& g) { step_of(g, 7, "L2 c0 experts").expert_rows -= 3; }},
      {"a router that sends fewer", PlanFault::rows_lost,
       [](PlanGraph& g) { step_of(g, 7, "L1 c1 route").in.rows -= 1; }},
      {"results that came from nowhere", PlanFault::rows_lost,
       [](PlanGraph& g) { step_of(g, 7, "L1 c1 combine").receives.front().rows += 1000; }},
  };
}

TEST(PlanChecks, NameTheFaultOfEachMutation) {
  const Planned planned({2, 1, 1, 1}, true);
  const PlanGraph sound = planned.graph(Route::flat, 2);
  ASSERT_EQ(sound.ranks.size(), 8U);
  std::set<PlanFault> kinds;
  for (const Mutation& mutation : mutations()) {
    PlanGraph mutated = sound;
    mutation.change(mutated);
    EXPECT_FALSE(has(sound, mutation.fault));
    EXPECT_TRUE(has(mutated, mutation.fault)) << mutation.name;
    kinds.insert(mutation.fault);
  }
  EXPECT_EQ(kinds.size(), 15U);
}

TEST(PlanChecks, ListsFewOfManyFindings) {
  const Planned planned({2, 1, 1, 1}, true);
  PlanGraph graph = planned.graph(Route::flat, 2);
  for (RankGraph& rank : graph.ranks) rank.room.receive_rows = 0;
  const auto findings = check_plan(graph, 2);
  EXPECT_EQ(findings.size(), 2U);
  EXPECT_NE(findings.front().text.find("a buffer too small: rank 0"), std::string::npos)
      << findings.front().text;
}

/// Whether all of a graph's nodes hang together.
bool connected(const Dag& dag) {
  std::vector<std::size_t> root(dag.nodes.size());
  for (std::size_t i = 0; i < root.size(); ++i) root[i] = i;
  const auto find = [&](std::size_t i) {
    while (root[i] != i) i = root[i] = root[root[i]];
    return i;
  };
  for (const DagEdge& edge : dag.edges) {
    root[find(static_cast<std::size_t>(edge.from))] = find(static_cast<std::size_t>(edge.to));
  }
  for (std::size_t i = 0; i < root.size(); ++i) {
    if (find(i) != find(0)) return false;
  }
  return true;
}

TEST(Dags, AreConnectedAndNameEveryOperationOnce) {
  for (const Route route : {Route::flat, Route::nodes}) {
    const Planned planned({1, 1, 2, 1}, true);
    const PlanGraph graph = planned.graph(route, 2);
    std::size_t steps = 0;
    for (const RankGraph& rank : graph.ranks) steps += rank.steps.size();
    const Dag complete = complete_deployment_dag(graph);
    EXPECT_GT(complete.nodes.size(), steps);  // exchanges have nodes of their own
    for (const Dag& dag : {complete, folded_deployment_dag(graph), comprehensive_moe_dag(graph),
                           simplified_moe_dag(graph), detailed_expert_dag(graph)}) {
      EXPECT_TRUE(connected(dag)) << dag.name;
      std::set<std::string> ids;
      for (const DagNode& node : dag.nodes) EXPECT_TRUE(ids.insert(node.id).second) << node.id;
      EXPECT_GT(std::count_if(dag.edges.begin(), dag.edges.end(),
                              [](const DagEdge& e) { return e.communication; }),
                0);
    }
  }
}

}  // namespace
}  // namespace atl
