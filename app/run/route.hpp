#pragma once
// Which way tokens take to their experts.

#include "app/config.hpp"
#include "app/plan/layout.hpp"
#include "app/plan/schedule.hpp"

namespace atl {

/// Whether some pass may take this route. On one node there are no two hops.
bool may_take(const RunOptions& options, const Layout& layout, Route route);

}  // namespace atl
