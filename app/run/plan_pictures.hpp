#pragma once
// Pictures of a plan as SVG: who is with whom, memory, bytes between ranks, and a pass in time.

#include <string>

#include "app/run/plan.hpp"

namespace atl {

/// Nodes as rows, ranks as boxes; ranks that share attention have one colour.
std::string layout_picture(const PlanInput& input, const PlannedLayout& layout);
/// A bar for each stage.
std::string memory_picture(const PlanInput& input, const PlannedLayout& layout);
/// Bytes of a pass from each rank (row) to each other (column).
std::string heat_picture(const PlannedPhase& phase, int num_ranks);
/// Some ranks: arithmetic and exchanges, the whole pass and its middle.
std::string timeline_picture(const PlannedLayout& layout, const PlannedPhase& phase);

}  // namespace atl
