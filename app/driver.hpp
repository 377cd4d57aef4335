#pragma once
// Executes a Schedule on this rank: the only loop that posts, polls and launches.
//
// The thread that calls run_step owns MPI. Arithmetic is enqueued on the backend's queue and runs
// beside it; what becomes ready first, runs first, in the schedule's order of priority.

#include <functional>
#include <memory>
#include <vector>

#include "app/batch.hpp"
#include "app/plan/placement.hpp"
#include "app/plan/schedule.hpp"
#include "app/timeline.hpp"
#include "comm/exchange.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Rows go with their counters up to this size: MPI libraries send so much at once, without asking
/// the receiver first, and a token of a decode step arrives one message earlier.
inline constexpr std::size_t first_message_bytes = 4000;

struct DriverOptions {
  int num_chunks = 1;
  bool overlap = true;
  comm::TransportKind transport = comm::TransportKind::ialltoallv;
  bool shares_cores = false;  ///< this rank has less than a core of its own
  std::size_t row_bytes = 0;  ///< of one token on the wire
  Mode mode = Mode::generate;
  int max_head_rows = 0;  ///< tokens to choose per chunk (generate)
  int max_chunk_tokens = 0;
  /// Host memory for x [tokens, H] of a chunk after a layer, or null where it is not wanted; it is
  /// filled when run_step returns. Empty: never.
  std::function<void*(int chunk, int layer, std::size_t tokens)> save_x;
};

/// Counted over the whole run on this rank.
struct Traffic {
  std::vector<std::int64_t> bytes_to;          ///< [ranks], token rows sent
  std::vector<std::int64_t> tokens_of_expert;  ///< [layers * experts], rows this rank sent there
  std::int64_t rows_computed = 0;              ///< expert rows computed on this rank
  std::int64_t bytes_sent_at_once = 0;         ///< largest single exchange
  std::int64_t receive_growths = 0;            ///< times that device memory was taken within a step
};

class Driver {
 public:
  /// Collective.
  Driver(compute::Backend& backend, const comm::Communicator& world, const ModelShape& shape,
         const Placement& placement, const DriverOptions& options, Timeline& timeline);
  ~Driver();

  /// The schedule for `num_chunks` chunks; built once, equal on all ranks.
  const Schedule& schedule(int num_chunks) const;

  /// Takes the batch's chunks through all steps; afterwards each chunk's head rows are filled.
  void run_step(Batcher& batch);

  const Traffic& traffic() const { return traffic_; }

 private:
  struct ChunkState;
  struct Compiled;  // a schedule with its successors
  struct Running {
    std::int32_t step;
    compute::Event first;  // compute: first and last operation of the step
    compute::Event event;
    double posted;  // exchange
  };

  void prepare(Batcher& batch);
  void launch();
  void release(std::int32_t step, bool launched_only);
  Running launch_compute(std::int32_t step);
  compute::Event save_x(const Step& step, const compute::Chunk& chunk, compute::Event last);
  compute::Event launch_head(ChunkState& state);
  void post_exchange(std::int32_t step);
  void test_exchanges();
  bool exchange_done(std::int32_t step);
  void build_blocks(ChunkState& state);
  bool poll();
  void record_intervals(const Running& running);
  void back_off();
  void say_where();

  compute::Backend& backend_;
  const comm::Communicator& world_;
  ModelShape shape_;
  Placement placement_;
  DriverOptions options_;
  Timeline& timeline_;
  int experts_per_peer_;
  std::vector<Compiled> compiled_;  // [num_chunks - 1]
  std::vector<std::unique_ptr<ChunkState>> chunks_;
  Traffic traffic_;

  // Of the step under way.
  Batcher* batch_ = nullptr;
  const Compiled* current_ = nullptr;
  std::vector<std::int32_t> pending_;        // [steps] dependencies not yet met
  std::vector<std::int32_t> ready_compute_;  // min-heap of steps
  std::vector<std::int32_t> ready_exchange_;
  std::vector<Running> running_compute_;  // in order of their launch
  std::vector<Running> running_exchange_;
  comm::Poller poller_;
  std::size_t completed_ = 0;
  int idle_polls_ = 0;
};

}  // namespace atl
