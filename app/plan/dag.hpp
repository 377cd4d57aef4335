#pragma once
// Pictures of a deployment as graphs: which operation on which GPU, with which tensors, and what
// travels. From the very pass that was written out and verified.

#include <cstdint>
#include <string>
#include <vector>

#include "app/plan/plan_graph.hpp"

namespace atl {

struct DagNode {
  std::string id;
  std::vector<std::string> lines;  ///< name, device, tensors
  bool communication = false;
};

struct DagEdge {
  std::int32_t from = 0;
  std::int32_t to = 0;
  bool communication = false;  ///< drawn dashed
  std::string label;
};

struct Dag {
  std::string name;   ///< of its file
  std::string title;  ///< one line: what is seen
  std::vector<DagNode> nodes;
  std::vector<DagEdge> edges;
};

/// Every operation of every rank; an exchange is one node, which rows of its members go through.
Dag complete_deployment_dag(const PlanGraph& graph);
/// The same, folded: ranks of a stage are one, layers of a kind are one, and so are chunks.
Dag folded_deployment_dag(const PlanGraph& graph);
/// All layers of a rank that has the median of rows, one chunk.
Dag comprehensive_moe_dag(const PlanGraph& graph);
/// One MoE layer of such a rank.
Dag simplified_moe_dag(const PlanGraph& graph);
/// One MoE layer, from the router to the merged rows, on some ranks that exchange rows: with the
/// rows that go between them.
Dag detailed_expert_dag(const PlanGraph& graph);

}  // namespace atl
