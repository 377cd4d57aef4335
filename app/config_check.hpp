#pragma once
// The options of `atoll check`.

#include <CLI/CLI.hpp>

#include "app/config.hpp"

namespace atl {

CLI::App& add_check(CLI::App& app, CheckOptions& options);

}  // namespace atl
