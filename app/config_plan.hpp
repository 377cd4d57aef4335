#pragma once
// The options of the command that plans a job.

#include <CLI/CLI.hpp>

#include "app/config.hpp"

namespace atl {

CLI::App& add_plan(CLI::App& app, PlanOptions& options);

}  // namespace atl
