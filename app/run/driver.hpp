#pragma once
// Executes a Schedule on this rank: the only loop that posts, polls and launches.
//
// The thread that calls run_pass owns MPI. Arithmetic is enqueued on the backend's queue and runs
// beside it; what becomes ready first, runs first, in the schedule's order of priority.

#include <functional>
#include <memory>
#include <vector>

#include "app/plan/placement.hpp"
#include "app/plan/ready.hpp"
#include "app/plan/schedule.hpp"
#include "app/run/back_off.hpp"
#include "app/run/batcher.hpp"
#include "app/run/chunk_moves.hpp"
#include "app/run/groups.hpp"
#include "app/run/head_step.hpp"
#include "app/run/routing_record.hpp"
#include "app/run/timeline.hpp"
#include "app/run/traffic.hpp"
#include "compute/backend.hpp"

namespace atl {

struct DriverOptions {
  int num_chunks = 1;  ///< of a pass, at most
  /// Passes under way at the same time, each with its own chunks; where there are several, each is
  /// one chunk.
  int num_flights = 1;
  int flights_at_once = 1;  ///< whose arithmetic goes on side by side; see flights_of_stage()
  bool overlap = true;
  comm::TransportKind transport = comm::TransportKind::ialltoallv;
  bool shares_cores = false;          ///< this rank has less than a core of its own
  std::size_t row_bytes = 0;          ///< of one token on the wire
  std::size_t across_row_bytes = 0;   ///< of one token between nodes, with its tail
  bool flat = true;                   ///< passes may take Route::flat
  bool nodes = false;                 ///< passes may take Route::nodes
  StageSteps stage;                   ///< what this rank's stage does, in each form of a pass
  compute::AttentionShare attention;  ///< this rank's
  Mode mode = Mode::generate;
  int max_head_rows = 0;  ///< tokens to choose per chunk (generate)
  int max_chunk_tokens = 0;
  /// Host memory for x [tokens, H] of a chunk after a layer, or null where it is not wanted; it is
  /// filled when run_pass returns. Empty: never.
  std::function<float*(int chunk, int layer, std::size_t tokens)> save_x;
  /// Host memory for what the router of a layer chose for a chunk, or none; filled when run_pass
  /// returns. Empty: never.
  std::function<RoutingRecord::Place(int chunk, int layer, std::size_t tokens)> save_choices;
  /// Choices that take the router's place. Empty: it chooses.
  std::function<compute::ForcedChoices(int chunk, int layer)> forced;
  /// Offsets on what it chooses. Empty: none.
  std::function<compute::ChoiceOffsets(int chunk, int layer)> offsets;
  /// How rows travel; empty: over MPI, by `transport`.
  MakeChunkMoves moves;
};

class Driver {
 public:
  /// Collective.
  Driver(compute::Backend& backend, const Groups& groups, const ModelShape& shape,
         const Placement& placement, const DriverOptions& options, Timeline& timeline);
  ~Driver();

  /// The schedule for `num_chunks` chunks of a form that passes may have; built once, equal on all
  /// ranks.
  const Schedule& schedule(int num_chunks, const PassForm& form) const;
  /// The forms that passes may have.
  std::vector<PassForm> forms() const;

  /// Takes the batch's chunks through all steps, in the same form on all ranks; afterwards each
  /// chunk's head rows are filled.
  void run_pass(Batcher& batch, const PassForm& form) {
    start(0, batch, form);
    land(0);
  }
  /// The same in two calls, so that other flights go on meanwhile. Flights are started and landed
  /// in the same order on all ranks.
  void start(int flight, Batcher& batch, const PassForm& form);
  void land(int flight);
  /// While the caller waits for messages of its own: flights under way go on, or this rests a
  /// little.
  void meanwhile();
  /// The first of the chunks, as save_x and the like count them, that a flight has.
  int first_slot(int flight) const { return flight; }

  const Traffic& traffic() const { return traffic_; }
  /// Rows of a layer that chose these experts do not count as their tokens any more.
  void take_back(int layer, std::span<const std::int32_t> experts) {
    const auto first =
        static_cast<std::size_t>(layer) * static_cast<std::size_t>(shape_.num_experts);
    for (const std::int32_t expert : experts) {
      --traffic_.tokens_of_expert[first + static_cast<std::size_t>(expert)];
    }
  }
  const Placement& placement() const { return placement_; }
  /// With no pass under way: the experts of a layer that shares its kind with none are elsewhere
  /// now, as many on each rank as before. What its replicas got is counted from now on.
  void place(int layer, LayerPlacement placement);

 private:
  struct ChunkState;
  /// A pass on its way.
  struct Flight {
    Batcher* batch = nullptr;
    ReadySteps* steps = nullptr;
  };
  struct Running {
    int flight;
    std::int32_t step;
    compute::Event first;  // arithmetic: first and last operation of the step
    compute::Event event;
    double posted;  // messages
  };

  ReadySteps& steps_of(int num_chunks, const PassForm& form, int flight);
  const Step& step_of(const Running& running) const {
    return flights_[static_cast<std::size_t>(running.flight)].steps->step(running.step);
  }
  void make_schedules(const Groups& groups);
  void give_rows(const ChunkBatch& batch, compute::OutputCut output, compute::Chunk& chunk) const;
  bool go_on();
  void require_under_way(const ReadySteps& steps) const;
  void rest(bool messages);
  void launch();
  void launch_messages(int flight);
  void launch_arithmetic(int flight);
  Running launch_compute(int flight, std::int32_t step);
  compute::Event save_x(const Step& step, const compute::Chunk& chunk, compute::Event last);
  compute::Event save_choices(const Step& step, const compute::Chunk& chunk, compute::Event last);
  ChunkState& chunk_of(const Step& step);
  bool poll();
  bool poll_compute();
  bool poll_exchanges();
  void record_intervals(const Running& running);
  void say_where();
  std::string awaited();

  compute::Backend& backend_;
  ModelShape shape_;
  Placement placement_;
  DriverOptions options_;
  Timeline& timeline_;
  struct PassesOfForm {
    PassForm form;
    std::vector<ReadySteps> steps;  // [num_chunks - 1], or [flights] where there are several
  };
  std::vector<PassesOfForm> passes_;
  Traffic traffic_;
  std::vector<std::unique_ptr<ChunkState>> chunks_;

  std::vector<Flight> flights_;
  std::vector<int> order_;  // flights under way, the oldest first

  // Of all passes under way.
  std::vector<Running> running_compute_;  // in order of their launch
  std::vector<Running> running_exchange_;
  comm::Poller poller_;
  BackOff back_off_;
};

}  // namespace atl
