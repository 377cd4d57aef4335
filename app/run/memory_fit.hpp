#pragma once
// Whether ranks have memory for their parts of a model, and how they would. Without MPI.

#include <cstdint>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/plan/job_layout.hpp"
#include "app/run/ranks.hpp"
#include "compute/backend.hpp"
#include "compute/memory_plan.hpp"

namespace atl {

/// A model whose ranks are divided somehow.
struct DividedModel {
  const ModelShape& shape;
  DType dtype;
  const JobLayout& job;
};

/// What a rank takes, with one page of KV cache.
struct RankNeeds {
  compute::BackendOptions options;
  compute::MemoryPlan plan;
};
/// Throws Error where ranks, model or placement do not go together.
RankNeeds needs_of_rank(const RunOptions& options, const DividedModel& model, int rank, bool cuda);

/// Bytes of a plan that have to be there: all, but of host memory that --memory-limit does not
/// limit only weights, since buffers there take what rows fill of them.
std::int64_t must_fit(const compute::MemoryPlan& plan, const RankMemory& memory);

/// How the options let ranks be divided: as they say, and by --expert-tp auto also with more and
/// more ranks for each expert. In the order in which they are taken.
std::vector<Division> open_divisions(const RunOptions& options, const ModelShape& shape,
                                     int num_ranks);

/// Whether the parts of all ranks fit into such memory.
bool fits(const RunOptions& options, const DividedModel& model, const RankMemory& memory);

/// How the model would fit: "--tp 2 --expert-tp 4 would fit", "32 ranks would do", or what else
/// there is to do. Takes a while.
std::string what_would_fit(const RunOptions& options, const ModelShape& shape, DType dtype,
                           int num_ranks, const RankMemory& memory);

/// Why a rank's part does not fit, and how it would.
std::string does_not_fit(const RunOptions& options, const DividedModel& model,
                         const compute::MemoryPlan& plan, const RankMemory& memory);

/// "4.10 GB", or "4.10 MB".
std::string gigabytes(std::int64_t bytes);

}  // namespace atl
