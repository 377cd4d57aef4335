#pragma once

#include <CLI/CLI.hpp>

#include "app/config.hpp"

namespace atl {

/// The options of atoll run that say what is done about uneven loads.
void add_run_balance(CLI::App& app, RunOptions& options);
/// Throws UsageError for options that do not go with one another.
void check_run_balance(const CLI::App& app, const RunOptions& options);

}  // namespace atl
