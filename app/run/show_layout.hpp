#pragma once
// What a layout means for ranks that need not be there: who is with whom, and what fits where.

#include <string>

#include "app/config.hpp"
#include "app/model/model_config.hpp"
#include "app/plan/job_layout.hpp"
#include "app/plan/placement.hpp"

namespace atl {

/// Groups and memory: of the ranks that hold most, weights, buffers, and the tokens of KV cache
/// that the rest of `memory_bytes` takes (0: only what a token costs). `cuda`: on GPUs, else in
/// host memory.
std::string layout_text(const RunOptions& options, const ModelConfig& config, DType dtype,
                        const JobLayout& job, bool cuda, double memory_bytes);

/// `atoll layout`: of so many ranks, without MPI. Throws Error where the layout is not possible.
std::string layout_text(const LayoutOptions& options);

}  // namespace atl
