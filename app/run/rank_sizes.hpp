#pragma once
// How large passes, chunks and buffers of a rank are, by options, model and layout alone.

#include "app/config.hpp"
#include "app/mode.hpp"
#include "app/plan/job_layout.hpp"
#include "app/plan/placement.hpp"
#include "app/run/batch_options.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Tokens per KV page.
inline constexpr int page_tokens = 64;

/// A model, and who has what of it.
struct RankModel {
  const ModelShape& shape;
  DType dtype;
  const Placement& placement;
  const JobLayout& job;
};

/// But for the model's stop tokens, and num_pages.
BatchOptions batch_options(const RunOptions& options, const RankModel& model, Mode mode);
/// Once it is known how many requests there are at most.
void limit_to(std::int64_t requests, const RunOptions& options, int tp, BatchOptions& batch);
/// But for num_pages. Without --tp-output attention's output projection is cut by columns, which
/// takes least. Throws Error where the model does not divide so.
compute::BackendOptions backend_options(int rank, const RunOptions& run, const RankModel& model,
                                        const BatchOptions& batch, int threads);

}  // namespace atl
