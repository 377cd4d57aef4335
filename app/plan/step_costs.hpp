#pragma once
// Seconds that a rank's arithmetic takes, by kind of step and what it works on: the longer of
// operations at the machine's rate and of reading weights, keys and values at its memory's, or
// as measured where products, attention and experts were.

#include <cstdint>
#include <span>

#include "app/plan/machine.hpp"
#include "app/plan/pass_load.hpp"
#include "app/plan/schedule.hpp"
#include "compute/weights.hpp"

namespace atl {

/// What one step of a rank works on, counted.
struct StepWork {
  int layer = -1;
  std::int64_t own_rows = 0;  ///< of the chunk, this rank's
  std::int64_t all_rows = 0;  ///< of all that share attention
  std::span<const LoadSegment> segments;
  std::int64_t head_rows = 0;
  /// Rows of each of its experts; where ranks share experts, of all of them.
  std::span<const std::int64_t> expert_rows;
  std::int64_t moved_rows = 0;  ///< rows that regroup, fold, collect and write copy or sum
};

/// Operations of matrices and attention, and bytes of weights, keys, values and rows that a step
/// reads or writes at least.
struct StepNeeds {
  double flops = 0;
  double bytes = 0;
};

class StepCosts {
 public:
  /// All ranks of a stage are alike but for the place of their heads. `output`: what passes go by.
  StepCosts(const Machine& machine, const ModelShape& shape, DType dtype, const compute::Part& part,
            compute::OutputCut output);

  /// Of a rank that is as fast as the machine says.
  double seconds(StepKind kind, const StepWork& work) const;
  StepNeeds needs(StepKind kind, const StepWork& work) const;
  /// Rows times a matrix [depth, columns] whose elements take so many bytes.
  double product(double rows, double depth, double columns, double bytes) const;
  double element() const { return element_; }
  /// Numbers of a row that a member of an owner sends where a norm goes over all heads.
  int sums_per_member() const { return share_.sums_per_member(shape_); }

 private:
  template <class Product, class Attend, class Rows>
  void visit(StepKind kind, const StepWork& work, const Product& product, const Attend& attend,
             const Rows& rows) const;
  template <class Product, class Attend>
  void attend_segments(const StepWork& work, const Product& product, const Attend& attend) const;
  /// Bytes of an element of a matrix whose rows have so many columns: fewer where layers keep its
  /// codes; a device unpacks these first, which writes the elements, and reads them again.
  double bytes_of(compute::Weight weight, int layer, double columns) const;
  /// On average of an MLP's matrices, by their weights.
  double bytes_of_mlp(compute::Weight gate, compute::Weight up, compute::Weight down, int layer,
                      double inner) const;
  /// Columns of the first projection; queries of a latent are projected by another.
  double projected() const {
    const LatentAttention& latent = shape_.latent;
    return latent.queries > 0 ? latent.queries + latent.width() : heads_.qkv_width();
  }
  double experts_factor(StepKind kind, std::span<const std::int64_t> rows) const;
  double matrices() const { return shape_.activation == Activation::gelu_tanh ? 2 : 3; }

  Machine machine_;
  ModelShape shape_;
  double element_;
  compute::AttentionShare share_;
  compute::OwnHeads heads_;
  double expert_members_;
  compute::OutputCut output_;
};

}  // namespace atl
