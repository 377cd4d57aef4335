#pragma once
// What passes of a layout take on a machine: builds the schedules that its ranks would run, counts
// the rows of their routers, and simulates all ranks.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "app/plan/machine.hpp"
#include "app/plan/pass_model.hpp"
#include "app/plan/simulator.hpp"

namespace atl {

/// A layout of a model on a machine, with everything that decides its passes.
struct LayoutSetup {
  const Machine* machine = nullptr;
  const ModelShape* shape = nullptr;
  DType dtype = DType::bfloat16;
  JobLayout job;
  Placement placement;  ///< of the ranks that exchange rows
  const RoutingSource* routing = nullptr;
  /// What ranks have of attention's output projection; `either`: a pass goes by its form.
  compute::OutputCut output = compute::OutputCut::columns;
  int num_flights = 1;
  bool overlap = true;
  double first_message_bytes = 0;
};

/// How closely passes are simulated.
struct SimulationDetail {
  bool merge_senders = false;
  double grain = 0.01;
  bool keep_steps = false;
  int threads = 1;     ///< networks that share no link run beside one another
  bool bound = false;  ///< nothing is simulated: a pass takes what its busiest rank computes
  bool first_network = false;  ///< and those that share links with it; the others are like it
};

struct PassPrice {
  double seconds = 0;                   ///< from one pass to the next, agreeing included
  TimeShares shares;                    ///< of all ranks
  std::vector<TimeShares> rank_shares;  ///< [ranks of the job]
  std::vector<double> waited_for;       ///< [ranks]
  std::vector<double> transfer_s;       ///< see SimulationResult
  std::vector<double> bytes;            ///< [ranks, ranks], per pass
  std::vector<double> link_bytes;       ///< [links of the network], per pass
  double flops = 0;                     ///< of matrices and attention, per pass, all ranks
  double arithmetic_limit_s = 0;        ///< at the machine's peaks, spread evenly over the ranks
  double busiest_arithmetic_s = 0;      ///< of the rank with most, at the rates reached
  double link_limit_s = 0;              ///< busiest link's bytes over what it carries
  std::string busiest_link;
  double busiest_link_bytes = 0;
  std::int64_t events = 0;
  std::int64_t shared = 0;
  std::vector<SimulatedStep> steps;  ///< where they were to be kept

  double busiest_link_use() const { return seconds > 0 ? link_limit_s / seconds : 0; }
};

class LayoutPricer {
 public:
  /// Throws Error where model and layout do not go together.
  explicit LayoutPricer(const LayoutSetup& setup);

  /// `loads` one after the other, all cut alike and in the same form; with several flights the
  /// first `num_flights` are taken to fill the stages and do not count, where as many follow.
  PassPrice price(const std::vector<PassLoad>& loads, const PassForm& form,
                  const SimulationDetail& detail) const;

  /// Adds the activations that a pass moves, in bytes, to [ranks, ranks]: from, to. Nothing is
  /// simulated.
  void add_bytes(const PassLoad& load, const PassForm& form, std::vector<double>& bytes) const;

  const JobGroups& groups() const { return groups_; }
  const Network& network() const { return network_; }
  const LayoutSetup& setup() const { return s_; }
  /// Of a stage, for passes of so many chunks.
  Schedule schedule(int stage, int num_chunks, const PassForm& form) const;
  /// Rows that routers would count, of one pass.
  RoutedRows rows_of(const PassLoad& load) const;
  /// What passes of this form cost and move. All that it is given outlives it, and so does this.
  PricedPasses model(const StageSteps& form, const std::vector<PassLoad>& loads,
                     const std::vector<RoutedRows>& rows) const;

 private:
  std::vector<std::vector<int>> components() const;
  SimulatorSetup simulator_setup(const std::vector<Schedule>& schedules, std::size_t num_passes,
                                 const SimulationDetail& detail) const;
  void add_needs(const PricedPasses& model, const std::vector<Schedule>& schedules,
                 const std::vector<PassLoad>& loads, const std::vector<int>& ranks,
                 PassPrice& price) const;
  void add_limits(PassPrice& price) const;

  LayoutSetup s_;
  JobGroups groups_;
  Network network_;
  std::vector<StepCosts> costs_by_columns_, costs_by_rows_;  // [ranks of a network]
};

}  // namespace atl
