#pragma once

#include <CLI/CLI.hpp>

#include "app/config.hpp"

namespace atl {

/// The options of atoll run that say what is computed once for several tokens or requests, and how
/// many of these wait in memory.
void add_run_prompts(CLI::App& app, RunOptions& options);

}  // namespace atl
