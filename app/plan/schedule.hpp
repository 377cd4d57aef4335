#pragma once
// The order of work as a value: steps {kind, layer, chunk, dependencies}, equal on all ranks, built
// from the model's shape alone. The driver executes it, the trace is named after it.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "compute/types.hpp"

namespace atl {

enum class StepKind : std::uint8_t {
  embed,      ///< compute: token ids -> x
  attention,  ///< compute
  mlp,        ///< compute: dense layer
  route,      ///< compute: router, rows packed by destination
  counts,     ///< exchange: how many rows go where
  dispatch,   ///< exchange: rows to their experts
  experts,    ///< compute
  combine,    ///< exchange: rows back
  merge,      ///< compute: weighted sum into x
  head,       ///< compute: logits, sampling or log-probabilities
};
inline constexpr int num_step_kinds = 10;

constexpr bool is_exchange(StepKind kind) {
  return kind == StepKind::counts || kind == StepKind::dispatch || kind == StepKind::combine;
}
std::string_view name_of(StepKind kind);

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

  std::uint64_t hash() const;  ///< equal schedules, equal hashes
};

/// Chunks run through the layers independently; of one chunk every step waits for the one before.
/// Attention of a chunk also waits for that of the chunk before it in the same layer, since a
/// sequence may be cut between them and needs the earlier keys and values.
Schedule overlapped_schedule(const ModelShape& shape, int num_chunks);

/// The same steps, each waiting for the one before it in the list: nothing overlaps.
Schedule serial_schedule(const ModelShape& shape, int num_chunks);

/// Throws Error unless the schedule is sound: dependencies point backwards, every chunk has exactly
/// the steps of every layer in their order, and exchanges of one chunk are ordered among
/// themselves.
void verify(const Schedule& schedule, const ModelShape& shape);

}  // namespace atl
