#pragma once
// What `atoll plan --output` writes beside the answer: drawings, page, and a predicted trace.

#include <filesystem>
#include <string>

#include "app/plan/plan_graph.hpp"
#include "app/run/plan.hpp"

namespace atl {

void write_text(const std::filesystem::path& path, const std::string& text);

/// Four graphs as .dot and .svg, the whole one as GraphML too, and the page. `ranked` may be null.
void write_drawings(const std::filesystem::path& folder, const PlanInput& input,
                    const PlannedLayout& layout, const RankedLayouts* ranked,
                    const PlanGraph& graph);

/// The simulated pass of a phase in the form of `run --trace`, with the same names.
void write_predicted_trace(const std::filesystem::path& path, const PlannedLayout& layout,
                           const PlannedPhase& phase);

}  // namespace atl
