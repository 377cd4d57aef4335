#pragma once
// What the steps of a pass cost and move: arithmetic in seconds for each rank, and who sends how
// many bytes to whom in each exchange.

#include <cstdint>
#include <vector>

#include "app/plan/job_groups.hpp"
#include "app/plan/routed_rows.hpp"
#include "app/plan/schedule.hpp"
#include "app/plan/step_costs.hpp"

namespace atl {

/// Between two members of a group, by their places.
struct Message {
  int from = 0;
  int to = 0;
  double bytes = 0;
  double row_bytes = 0;   ///< of these, activations, which reports count
  std::int64_t rows = 0;  ///< that they are, as MPI counts them
};

/// What the simulator asks about the passes that it runs.
class PassModel {
 public:
  virtual ~PassModel() = default;
  /// Of arithmetic.
  virtual double seconds(int rank, int pass, const Step& step) const = 0;
  /// Of an exchange: beside what its messages take, on this rank.
  virtual double own_seconds(int /*rank*/, int /*pass*/, const Step& /*step*/) const { return 0; }
  /// Appends the messages of an exchange in a group of its share.
  virtual void messages(Share share, int group, int pass, const Step& step,
                        std::vector<Message>& out) const = 0;
};

/// Of a model's passes on a machine. What it is given outlives it.
class PricedPasses final : public PassModel {
 public:
  struct Setup {
    const JobGroups& groups;
    const Machine& machine;
    const ModelShape& shape;
    DType dtype;
    const Placement& placement;
    StageSteps form;                      ///< route and output of the passes
    const std::vector<StepCosts>& costs;  ///< [ranks of a network], alike in all networks
    const std::vector<PassLoad>& loads;   ///< [passes]
    const std::vector<RoutedRows>& rows;  ///< [passes]
    double first_message_bytes = 0;       ///< rows go with their counters up to this size
  };
  explicit PricedPasses(const Setup& setup);

  double seconds(int rank, int pass, const Step& step) const override;
  void messages(Share share, int group, int pass, const Step& step,
                std::vector<Message>& out) const override;

  /// What a rank's arithmetic in a step works on, given to `use`.
  StepNeeds needs(int rank, int pass, const Step& step) const;
  /// Rows that come to the experts of a rank, of its own exchange.
  std::vector<std::int64_t> rows_of_experts(int rank, int pass, const Step& step) const;
  /// Rows that a rank forwards inside its node, for each of the node's places.
  std::vector<std::int64_t> forwarded(int rank, int pass, const Step& step) const;
  /// Rows that routers counted in the rank's exchange.
  const LayerRows& rows_seen_by(int rank, int pass, const Step& step) const {
    return rows_of(s_.groups.group_of(Share::exchange, rank), pass, step);
  }

 private:
  template <class Use>
  auto with_work(int rank, int pass, const Step& step, const Use& use) const;
  const LayerRows& rows_of(int exchange, int pass, const Step& step) const;
  const LayerPlacement& placement_of(const Step& step) const { return s_.placement.of(step.layer); }
  void of_owner(int group, int pass, const Step& step, std::vector<Message>& out) const;
  void of_holder(int group, int pass, const Step& step, std::vector<Message>& out) const;
  void of_flat(int group, int pass, const Step& step, std::vector<Message>& out) const;
  void of_node(int group, int pass, const Step& step, std::vector<Message>& out) const;
  void of_rail(int group, int pass, const Step& step, std::vector<Message>& out) const;
  std::int64_t moved_rows(int rank, int pass, const Step& step) const;
  bool goes_along(double header, double bytes) const;

  const Setup s_;
  double row_bytes_;
  double across_bytes_;
};

}  // namespace atl
