#pragma once
// The order of work as a value: steps {kind, layer, chunk, dependencies}, equal on all ranks, built
// from the model's shape alone. The driver executes it, the trace is named after it.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/plan/layout.hpp"
#include "compute/types.hpp"
#include "compute/weights.hpp"

namespace atl {

enum class StepKind : std::uint8_t {
  receive,          ///< exchange: x from the stage before
  embed,            ///< compute: token ids -> x, or what has been received
  attention,        ///< compute: of a rank that shares it with none
  norm,             ///< compute: own rows for attention, normalised
  gather,           ///< exchange: rows to all that share attention
  project,          ///< compute: queries, keys, values of own heads
  head_sums,        ///< exchange: sums over heads to all, where a norm goes over all of them
  attend,           ///< compute: own heads of all rows
  heads,            ///< exchange: heads to those that project them
  output,           ///< compute: output projection
  outputs,          ///< exchange: what it gave, to the rows' ranks
  add,              ///< compute: that into x
  mlp,              ///< compute: dense layer
  route,            ///< compute: router, rows packed by destination
  across_counts,    ///< exchange: how many rows go to which node
  across_dispatch,  ///< exchange: rows to their experts' nodes, each once
  counts,           ///< exchange: how many rows go where
  regroup,          ///< compute: rows on their node, copied for each of its experts
  dispatch,         ///< exchange: rows to their experts
  shared_expert,    ///< compute: the MLP of all tokens, while rows are on their way
  experts,          ///< compute: of a rank that shares them with none
  held_counts,      ///< exchange: how many rows came to whom of those that share experts
  collect,          ///< compute: own ones of these rows, one behind the other
  held_rows,        ///< exchange: they go to all that share the experts
  up,               ///< compute: own inner columns of all rows
  inner_rows,       ///< exchange: these columns to all
  down,             ///< compute: own columns of the results
  held_results,     ///< exchange: the columns back to those the rows came to
  write,            ///< compute: whole results, where they are sent from
  combine,          ///< exchange: rows back
  fold,             ///< compute: a token's rows on a node, added up where it has all of them
  across_combine,   ///< exchange: rows back to the token's rank
  merge,            ///< compute: weighted sum into x
  forward,          ///< exchange: x to the next stage
  head,             ///< compute: logits, sampling or log-probabilities
  tokens,           ///< exchange: what heads gave, to all that have the sequences
};
inline constexpr int num_step_kinds = 36;

/// What is known of a kind of step: the one table.
struct StepInfo {
  std::string_view name;
  bool exchange = false;
  Share share = Share::exchange;  ///< of an exchange: whose ranks take part, by Route::nodes
  bool ends_phase = false;        ///< after it the other chunks get their turn, see interleave()
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

/// How a pass runs, of what its stage leaves open.
struct PassForm {
  Route route = Route::flat;
  /// Attention's output projection, where ranks have it by OutputCut::either; else not looked at.
  compute::OutputCut output = compute::OutputCut::columns;

  bool operator==(const PassForm&) const = default;
};

/// Who takes part in an exchange by this route.
inline Share share_of(StepKind kind, Route route) {
  const Share share = info_of(kind).share;
  const bool by_route = share == Share::node || share == Share::rail;
  return by_route && route == Route::flat ? Share::exchange : share;
}

/// What of the work on a layer is divided over ranks, and which layers a rank has: it decides which
/// steps there are.
struct StageSteps {
  Route route = Route::flat;
  int first_layer = 0;
  int end_layer = -1;  ///< -1: the model's last one is the last
  bool attention_shared = false;
  compute::OutputCut output = compute::OutputCut::columns;  ///< of a pass, where it is shared
  bool experts_shared = false;
  bool sequences_shared = false;  ///< other ranks have them too

  bool operator==(const StageSteps&) const = default;
};

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
  StageSteps stage;

  std::uint64_t hash() const;  ///< equal schedules, equal hashes
};

/// Chunks run through the layers independently; of one chunk every step waits for those whose rows
/// or counts it uses. What fills the KV cache for a chunk also waits for that of the chunk before
/// it in the same layer, since a sequence may be cut between them and needs the earlier keys and
/// values.
Schedule overlapped_schedule(const ModelShape& shape, int num_chunks, const StageSteps& stage = {});

/// The same steps, each waiting for the one before it in the list: nothing overlaps.
Schedule serial_schedule(const ModelShape& shape, int num_chunks, const StageSteps& stage = {});

/// Throws Error unless the schedule is sound: dependencies point backwards, every chunk has exactly
/// the steps of every layer in their order, each waits for what it uses, and exchanges of one chunk
/// are ordered among themselves.
void verify(const Schedule& schedule, const ModelShape& shape);

}  // namespace atl
