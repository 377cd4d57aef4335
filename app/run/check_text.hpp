#pragma once
// What `atoll check` found, for a person and for a program.

#include <nlohmann/json.hpp>
#include <string>

#include "app/run/check_judgement.hpp"

namespace atl {

/// One screen: nodes (a few of many), links, transports, problems.
std::string check_text(const MachineFacts& machine, const Verdict& verdict);
/// Everything; keys as in app/README.md.
nlohmann::ordered_json check_json(const MachineFacts& machine, const Verdict& verdict);

}  // namespace atl
