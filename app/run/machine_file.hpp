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
/// Throws Error where a machine's figures were measured on another processor than this one, unless
/// that is asked for.
void require_own(const Machine& machine, const std::string& path, bool foreign);

}  // namespace atl
