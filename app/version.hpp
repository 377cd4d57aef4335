#pragma once
// Which program this is, in full.

#include <string>

namespace atl {

/// "atoll 0.1.0", and a line each for build, libraries and features. Needs no MPI to be started.
std::string version_text();

}  // namespace atl
