#include "app/run/route.hpp"

namespace atl {

bool may_take(const RunOptions& options, const Layout& layout, Route route) {
  if (layout.num_nodes() == 1) return route == Route::flat;
  return options.route.value_or(route) == route;
}

}  // namespace atl
