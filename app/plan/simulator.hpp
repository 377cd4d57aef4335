#pragma once
// Runs the very schedules that ranks would, by the driver's own rule (ReadySteps), with costs in
// place of events: every rank, every layer, messages as flows on shared links. When anything runs,
// overlaps or waits is an outcome.
//
// A rank is a host thread that posts, polls and enqueues, and one queue of arithmetic which keeps
// its order. The host sees what is done `poll_s` later, and every message that it posts takes
// `message_s` of it. A message begins once both ends have posted it (a small one once its sender
// has), a latency later; messages that are too small to fill a link share nothing. While a rank
// sends or receives, each byte takes of its arithmetic what the machine says.

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <unordered_map>
#include <vector>

#include "app/plan/flows.hpp"
#include "app/plan/job_groups.hpp"
#include "app/plan/pass_model.hpp"
#include "app/plan/ready.hpp"
#include "app/plan/time_shares.hpp"

namespace atl {

struct SimulatorSetup {
  const JobGroups* groups = nullptr;
  const Machine* machine = nullptr;
  const Network* network = nullptr;
  const PassModel* model = nullptr;
  /// [stages][passes]: what a rank of the stage runs; the same object for the same schedule.
  std::vector<std::vector<const Schedule*>> schedules;
  std::vector<int> ranks;  ///< that run: whole networks
  int num_passes = 1;
  int num_flights = 1;         ///< passes under way at the same time, begun and ended in turn
  int flights_at_once = 1;     ///< whose arithmetic a rank takes up side by side
  bool merge_senders = false;  ///< rows of a node's ranks to one rank are one flow
  double grain = 0.01;         ///< see Flows
  bool keep_steps = false;
  /// Told of each step that a rank enqueues or posts, in this order.
  std::function<void(int rank, int pass, int step, double now)> launched;
};

/// When a step ran on a rank.
struct SimulatedStep {
  std::int32_t rank = 0;
  std::int32_t pass = 0;
  std::int32_t step = 0;  ///< of its stage's schedule
  double begin = 0, end = 0;
};

struct SimulatedPass {
  double begin = 0;  ///< all ranks have agreed on it
  double end = 0;    ///< it has ended on the last rank
};

struct SimulationResult {
  std::vector<SimulatedPass> passes;
  TimeShares shares;                    ///< of all ranks, from the first begin to the last end
  std::vector<TimeShares> rank_shares;  ///< [ranks of the setup]
  std::vector<double> bytes;            ///< [ranks, ranks] of the setup: activations, from, to
  std::vector<double> link_bytes;       ///< [links]
  std::vector<double> link_busy_s;      ///< [links]
  std::vector<SimulatedStep> steps;     ///< in order of their end; where they were to be kept
  std::vector<double> waited_for;       ///< [ranks]: seconds that others waited for each
  /// Of each exchange of experts' rows: from the last rank's post to the last one's end, rising.
  std::vector<double> transfer_s;
  std::int64_t events = 0, shared = 0;
};

class Simulator {
 public:
  explicit Simulator(const SimulatorSetup& setup);
  ~Simulator();
  /// Runs all passes. Throws Error naming a rank and a step where ranks wait for each other.
  SimulationResult run();

 private:
  struct Rank;
  struct Exchange;
  enum class Do : std::int32_t { wake, begin_flows, start_pass };
  struct Event {
    double time;
    std::uint64_t order;
    Do what;
    std::int32_t index;
    bool operator>(const Event& other) const {
      return time != other.time ? time > other.time : order > other.order;
    }
  };
  struct Running {
    std::int32_t pass = 0;
    std::int32_t step = 0;
    double begin = 0, end = 0;
    std::int32_t exchange = -1;
    std::int32_t place = 0;
  };
  struct Starting {  // flows of an exchange that begin together
    std::int32_t exchange = 0;
    std::vector<std::int32_t> flows;
  };

  void wake_at(int rank, double time);
  void wake(int rank, double now);
  bool complete(Rank& rank, double now);
  void launch(Rank& rank, double now);
  void post(Rank& rank, std::int32_t pass, std::int32_t step, double now);
  void next_turn(Rank& rank, double now);
  void start_pass(double now);
  void push(double time, Do what, std::int32_t index);
  std::int32_t exchange_of(const Rank& rank, std::int32_t pass, const Step& step, int& place);
  void describe(std::int32_t index, const Step& step);
  void merge(Exchange& exchange);
  void post_messages(std::int32_t index, int place, double now);
  void flow_ended(std::int64_t tag, double now);
  double lost_per_byte(const LinkPath& path) const;
  void delay(Rank& rank, double seconds, double now);
  Rank& at_place(const Exchange& exchange, int place);
  void check_done(Exchange& exchange, int place, double now);
  void begin_flows(const Starting& starting, double now);
  void account(Rank& rank, const Running& running);
  void collect(SimulationResult& result);
  void require_ended() const;

  SimulatorSetup s_;
  Flows flows_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<int> index_of_rank_;  // [ranks of the job]
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::vector<std::int32_t> free_exchanges_;
  std::unordered_map<std::uint64_t, std::int32_t> exchange_at_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<Starting> starting_;  // slots
  std::vector<std::int32_t> free_starting_;
  std::vector<std::int64_t> ended_;
  std::uint64_t order_ = 0;
  int at_turn_ = 0;  // ranks that have come to the next pass's agreement
  std::int32_t next_pass_ = 0;
  std::size_t max_queued_;
  SimulationResult result_;
};

}  // namespace atl
