#include "perf/rows_place.hpp"

namespace atl::perf {

RowsPlace open_rows_place() {
  return {};
}

}  // namespace atl::perf
