#pragma once
// Whether a pass that has been written out can run: found before any GPU is taken.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/plan/plan_graph.hpp"

namespace atl {

enum class PlanFault : std::uint8_t {
  no_device,           ///< an operation on a rank that is not there
  twice,               ///< a step that a chunk has twice on a rank
  unknown_dependency,  ///< on a step that does not exist
  cycle,               ///< operations that wait for each other
  unconnected,         ///< an operation that nothing leads to, or from
  shapes_differ,       ///< what one step leaves is not what the next takes
  no_receive,          ///< a send that nobody receives
  no_send,             ///< a receive that nobody sends
  sizes_differ,        ///< both ends of a message say other sizes
  to_itself,           ///< own rows never go through MPI
  order_differs,       ///< members of a group start their exchanges in other orders
  outside_group,       ///< a message to a rank that takes no part in the exchange
  too_many_rows,       ///< more than MPI counts
  too_small,           ///< a buffer with less room than rows
  rows_lost,           ///< tokens' rows that do not come to an expert, or not back
};
/// E.g. "order of moves differs".
std::string_view name_of(PlanFault fault);

struct PlanFinding {
  PlanFault fault{};
  std::string text;  ///< one line: rank, step, and what is wrong
};

/// All kinds of faults are looked for; at most `most` findings of each are listed.
std::vector<PlanFinding> check_plan(const PlanGraph& graph, std::size_t most = 3);

}  // namespace atl
