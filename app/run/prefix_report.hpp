#pragma once
// What shared beginnings of prompts saved, for the report, and why nothing is shared.

#include <nlohmann/json.hpp>
#include <string>

#include "app/config.hpp"
#include "app/run/prefix_pages.hpp"
#include "comm/communicator.hpp"

namespace atl {

/// Why every request of a run computes its whole prompt; "": what they have in common is computed
/// once.
std::string why_no_prefixes(const RunOptions& options);

/// Collective; on rank 0. `mine` counts where this rank `speaks` for its sequences.
nlohmann::json gather_prefix_report(const comm::Communicator& world, const RunOptions& options,
                                    bool speaks, const PrefixCounts& mine);

}  // namespace atl
