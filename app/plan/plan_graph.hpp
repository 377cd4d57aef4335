#pragma once
// A pass of all ranks written out: every operation with its rank and tensors, every message at both
// of its ends. What is verified before a GPU is taken, and what is drawn.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "app/plan/layout_pricer.hpp"
#include "compute/backend.hpp"

namespace atl {

/// [rows, columns] of elements of a type; what an operation takes or leaves.
struct Tensor {
  std::string_view name;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::string_view type;

  bool operator==(const Tensor&) const = default;
};
std::string text_of(const Tensor& tensor);

/// One end of a message.
struct Transfer {
  std::int32_t peer = 0;  ///< rank of the job
  std::int64_t rows = 0;
  std::int64_t bytes = 0;

  bool operator==(const Transfer&) const = default;
};

struct GraphStep {
  Step step;
  Tensor in, out;
  Share share = Share::exchange;  ///< of an exchange: whose members take part
  std::int32_t group = -1;        ///< -1: arithmetic
  std::vector<Transfer> sends, receives;
  std::int64_t expert_rows = 0;  ///< that this rank's experts compute here

  bool exchange() const { return group >= 0; }
};

/// What a rank has room for.
struct RankRoom {
  std::int64_t chunk_tokens = 0;
  std::int64_t packed_rows = 0;
  std::int64_t receive_rows = 0;  ///< that its buffers may grow to
};

struct RankGraph {
  std::int32_t rank = 0;
  std::int32_t stage = 0;
  RankRoom room;
  std::vector<GraphStep> steps;  ///< in order of the rank's schedule
};

struct PlanGraph {
  std::vector<RankGraph> ranks;
  int num_ranks = 0;  ///< of the job
  int top_k = 0;
  int num_chunks = 1;
  bool overlapped = true;
};

/// Of the first network, which the others are like, in one pass. `room`: of a rank.
PlanGraph graph_of(const LayoutPricer& pricer, const PassLoad& load, const PassForm& form,
                   const compute::BackendOptions& room);

}  // namespace atl
