#pragma once
// Files that describe a machine: of perf/machines, from data sheets, or what perf/calibrate wrote.

#include <string>

#include "app/plan/machine.hpp"

namespace atl {

/// Reads {"format": "atoll-machine", ...}; app/README.md says what is in it. Throws Error, which
/// begins with the file's name, for a rate that is missing or absurd, or a key that is not known.
Machine read_machine(const std::string& path);
/// The same of a text.
Machine parse_machine(const std::string& text, const std::string& name);

}  // namespace atl
