#pragma once
// What guessing tokens brought, for the report, and why none are guessed.

#include <nlohmann/json.hpp>
#include <string>

#include "app/config.hpp"
#include "app/run/prompt_lookup.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Why a run with --speculate guesses no tokens; "": it does, or was not asked to.
std::string why_no_speculation(const RunOptions& options);

/// Collective; on rank 0. `mine` counts where this rank `speaks` for its sequences.
nlohmann::json gather_speculation_report(const comm::Communicator& world, const RunOptions& options,
                                         bool speaks, const SpeculationCounts& mine);

}  // namespace atl
