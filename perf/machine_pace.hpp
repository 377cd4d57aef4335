#pragma once
// What a backend's operations would take on a machine of stated rates: the longer of arithmetic at
// its rate and of reading weights, keys and values at the memory's.

#include <algorithm>
#include <cstdint>
#include <span>

#include "compute/backend.hpp"
#include "compute/types.hpp"

namespace atl::perf {

/// Of one rank.
struct MachineRates {
  double flops_per_s = 0;
  double bytes_per_s = 0;
};

class MachinePace {
 public:
  MachinePace(const MachineRates& rates, const compute::BackendOptions& options)
      : rates_(rates),
        shape_(options.shape),
        part_(options.part),
        element_(static_cast<double>(size_of(options.dtype))),
        heads_(compute::own_heads(options.shape, options.part.attention)) {}

  double attention(const compute::Chunk& chunk, compute::AttentionPart part) const {
    using Part = compute::AttentionPart;
    const bool all = part == Part::all;
    double seconds = 0;
    if (all || part == Part::project) {
      seconds += product(attention_rows(chunk), shape_.hidden, heads_.qkv_width());
    }
    if (all || part == Part::attend) seconds += attend(chunk);
    if (all || part == Part::output) seconds += output(chunk);
    return seconds;
  }

  double mlp(const compute::Chunk& chunk) const {
    return product(rows_of(chunk), shape_.hidden, num_matrices() * shape_.intermediate);
  }

  double route(const compute::Chunk& chunk) const {
    return product(rows_of(chunk), shape_.hidden, shape_.num_experts);
  }

  double experts(std::span<const compute::RowBlock> blocks, compute::ExpertPart part) const {
    using Part = compute::ExpertPart;
    const double cut = part_.expert_share.members;
    const double inner = shape_.moe_intermediate / cut;
    double columns = 0;  // of a row's matrices, each `hidden` long
    if (part == Part::all || part == Part::up) columns += (num_matrices() - 1) * inner;
    if (part == Part::all || part == Part::down) columns += inner;
    if (columns == 0) return 0;
    double seconds = 0;
    for (std::size_t i = 0; i < blocks.size();) {
      double rows = 0;
      const std::int32_t expert = blocks[i].local_expert;
      for (; i < blocks.size() && blocks[i].local_expert == expert; ++i) rows += blocks[i].num_rows;
      seconds += product(rows, shape_.hidden, columns);
    }
    return seconds;
  }

  double head(std::size_t rows) const {
    return product(static_cast<double>(rows), shape_.hidden, shape_.vocab);
  }

 private:
  static double rows_of(const compute::Chunk& chunk) {
    return static_cast<double>(chunk.tokens.size());
  }
  double attention_rows(const compute::Chunk& chunk) const {
    return part_.attention.shared() ? static_cast<double>(chunk.all_rows) : rows_of(chunk);
  }
  double num_matrices() const { return shape_.activation == Activation::swiglu ? 3 : 2; }

  double longer(double flops, double bytes) const {
    return std::max(flops / rates_.flops_per_s, bytes / rates_.bytes_per_s);
  }

  /// Rows times a matrix, which is read once; nothing is where there are no rows.
  double product(double rows, double depth, double columns) const {
    return rows == 0 ? 0 : longer(2 * rows * depth * columns, depth * columns * element_);
  }

  double attend(const compute::Chunk& chunk) const {
    double seconds = 0;
    for (const compute::Segment& segment : chunk.segments) {
      const double rows = segment.num_rows;
      const double seen = segment.first_position + (rows + 1) / 2;
      seconds += longer(4 * rows * seen * heads_.q_width(),
                        2 * (segment.first_position + rows) * heads_.kv_width() * element_);
    }
    return seconds;
  }

  double output(const compute::Chunk& chunk) const {
    const compute::AttentionShare& share = part_.attention;
    if (!share.shared()) return product(rows_of(chunk), shape_.q_width(), shape_.hidden);
    switch (chunk.output) {
      case compute::OutputCut::rows:
        return product(rows_of(chunk), shape_.q_width(), shape_.hidden);
      case compute::OutputCut::columns:
        return product(attention_rows(chunk), shape_.q_width(),
                       static_cast<double>(shape_.hidden) / share.members);
      case compute::OutputCut::sum:
      case compute::OutputCut::sum_bf16:
        return product(attention_rows(chunk), heads_.q_width(), shape_.hidden);
      case compute::OutputCut::either:  // what ranks have, not what a pass goes by
        break;
    }
    return 0;
  }

  MachineRates rates_;
  ModelShape shape_;
  compute::Part part_;
  double element_;
  compute::OwnHeads heads_;
};

}  // namespace atl::perf
