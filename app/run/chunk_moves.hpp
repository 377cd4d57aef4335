#pragma once
// One chunk's rows between ranks: executes the message steps of a schedule.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "app/plan/placement.hpp"
#include "app/plan/schedule.hpp"
#include "app/run/groups.hpp"
#include "app/run/traffic.hpp"
#include "comm/poller.hpp"
#include "comm/transports/kind.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Rows go with their counters up to this size: MPI libraries send so much at once, without asking
/// the receiver first, and a token of a decode pass arrives one message earlier.
inline constexpr std::size_t first_message_bytes = 4000;

/// The driver posts a message step once what it needs is there, polls until it is done, and asks
/// for the blocks when the experts run. Benchmarks have others than the one over MPI.
class ChunkMoves {
 public:
  virtual ~ChunkMoves() = default;
  /// The pass that begins takes this route.
  virtual void begin(Route route) = 0;
  virtual void post(const Step& step) = 0;
  virtual void poll_with(const Step& step, comm::Poller& poller) = 0;
  /// As the last poll found it; once it is true, what follows in this chunk may begin.
  virtual bool done(const Step& step) = 0;
  /// What regroup and fold work on.
  virtual compute::NodeRows node_rows() const = 0;
  /// The rows of this rank's experts in `layer`, where they lie. Valid until the next call.
  virtual std::span<const compute::RowBlock> blocks(int layer) = 0;
  /// The same as before; it does not count rows again.
  virtual std::span<const compute::RowBlock> same_blocks() const = 0;
  /// Where several ranks share experts: all their rows. Valid until the next held_counts.
  virtual std::span<const compute::RowBlock> shared_blocks() const = 0;
  virtual comm::Awaited awaited(const Step& step) const = 0;
  /// With no step under way: RowsSetup::placement has other places for the experts of `layer`.
  virtual void placed(int layer) = 0;
  /// Requests of MPI under way at the same time, at most.
  virtual std::size_t most_requests() const = 0;
};

/// Makes the moves of a chunk. Collective, in the same order on all ranks.
using MakeChunkMoves = std::function<std::unique_ptr<ChunkMoves>(compute::Chunk& chunk, int index)>;

/// What chunks' rows need to know to travel over MPI.
struct RowsSetup {
  const Groups* groups = nullptr;
  const ModelShape* shape = nullptr;
  const compute::AttentionShare* attention = nullptr;
  const Placement* placement = nullptr;
  std::size_t row_bytes = 0;
  std::size_t across_row_bytes = 0;  ///< with the tail, see compute::across_row
  bool flat = true;                  ///< Route::flat will be used
  bool nodes = false;                ///< Route::nodes will be used
  comm::TransportKind transport = comm::TransportKind::ialltoallv;
  compute::DeviceMemory* device = nullptr;  ///< where rows lie; null: host memory
  Traffic* traffic = nullptr;
};
/// Collective: rows of `chunk` over lanes of its own. All that `setup` points to outlives it.
std::unique_ptr<ChunkMoves> moves_over_mpi(const RowsSetup& setup, compute::Chunk& chunk);

}  // namespace atl
