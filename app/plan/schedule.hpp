#pragma once
// The order of work as a value: steps {kind, layer, chunk, dependencies}, equal on all ranks, built
// from the model's shape alone. The driver executes it, the trace is named after it.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/plan/layout.hpp"
#include "compute/types.hpp"

namespace atl {

enum class StepKind : std::uint8_t {
  embed,            ///< compute: token ids -> x
  attention,        ///< compute
  mlp,              ///< compute: dense layer
  route,            ///< compute: router, rows packed by destination
  across_counts,    ///< exchange: how many rows go to which node
  across_dispatch,  ///< exchange: rows to their experts' nodes, each once
  counts,           ///< exchange: how many rows go where
  regroup,          ///< compute: rows on their node, copied for each of its experts
  dispatch,         ///< exchange: rows to their experts
  experts,          ///< compute
  combine,          ///< exchange: rows back
  fold,             ///< compute: a token's rows on a node, added up where it has all of them
  across_combine,   ///< exchange: rows back to the token's rank
  merge,            ///< compute: weighted sum into x
  head,             ///< compute: logits, sampling or log-probabilities
};
inline constexpr int num_step_kinds = 15;

/// What is known of a kind of step: the one table.
struct StepInfo {
  std::string_view name;
  bool exchange = false;
  Share share = Share::stage;  ///< of an exchange: whose ranks take part, by Route::nodes
  bool ends_phase = false;     ///< after it the other chunks get their turn, see interleave()
};
const StepInfo& info_of(StepKind kind);

inline bool is_exchange(StepKind kind) {
  return info_of(kind).exchange;
}
inline std::string_view name_of(StepKind kind) {
  return info_of(kind).name;
}

/// How rows travel to their experts.
enum class Route : std::uint8_t {
  flat,   ///< straight to the rank that holds the expert
  nodes,  ///< once to each node, along the same place, and there to the holders
};
inline constexpr int num_routes = 2;
std::string_view name_of(Route route);

/// Who takes part in an exchange by this route.
inline Share share_of(StepKind kind, Route route) {
  return route == Route::flat ? Share::stage : info_of(kind).share;
}

struct Step {
  StepKind kind = StepKind::embed;
  std::int16_t layer = -1;  ///< -1 outside the layers
  std::int16_t chunk = 0;
  std::vector<std::int32_t> deps;  ///< indices of earlier steps

  std::string name() const;  ///< e.g. "L3 c1 dispatch"
};

/// Steps in order of priority: of the steps that could run, the first in the list runs.
struct Schedule {
  std::vector<Step> steps;
  int num_chunks = 0;
  bool overlapped = false;
  Route route = Route::flat;

  std::uint64_t hash() const;  ///< equal schedules, equal hashes
};

/// Chunks run through the layers independently; of one chunk every step waits for those whose rows
/// or counts it uses. Attention of a chunk also waits for that of the chunk before it in the same
/// layer, since a sequence may be cut between them and needs the earlier keys and values.
Schedule overlapped_schedule(const ModelShape& shape, int num_chunks, Route route = Route::flat);

/// The same steps, each waiting for the one before it in the list: nothing overlaps.
Schedule serial_schedule(const ModelShape& shape, int num_chunks, Route route = Route::flat);

/// Throws Error unless the schedule is sound: dependencies point backwards, every chunk has exactly
/// the steps of every layer in their order, each waits for what it uses, and exchanges of one chunk
/// are ordered among themselves.
void verify(const Schedule& schedule, const ModelShape& shape);

}  // namespace atl
