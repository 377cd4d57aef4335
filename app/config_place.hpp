#pragma once
// The options of the command that makes a placement.

#include <CLI/CLI.hpp>

#include "app/config.hpp"

namespace atl {

CLI::App& add_place(CLI::App& app, PlaceOptions& options);

}  // namespace atl
