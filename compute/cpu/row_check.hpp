#pragma once
// Whether a library's GEMM gives a row the same bits whatever comes with it. Ours do by
// construction; a library chooses kernels by shape, number of rows and threads, so it is tried.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "compute/cpu/gemm.hpp"
#include "compute/types.hpp"
#include "compute/weights.hpp"

namespace atl::compute {

/// Makes the GEMM that is tried, for a number of threads.
using GemmMaker = std::function<std::unique_ptr<Gemm>(int num_threads)>;

/// The first use with a row whose bits depend on the rows with it, on the number of threads (1 and
/// the most that oneDNN gets are tried), or on whether all columns are multiplied, or a half or an
/// eighth of them, or as many as one of `cuts` with the same k has; nothing where there is none.
/// Data is pseudo-random and the same in every process.
std::optional<GemmUse> use_that_changes_rows(const GemmMaker& make, DType dtype,
                                             std::span<const GemmUse> uses,
                                             std::span<const GemmUse> cuts = {});

/// The shapes of a model's GEMMs, each once.
std::vector<GemmUse> gemm_uses(const ModelShape& shape);

/// Those of them that some rank has a part of only, where several share attention, or experts.
std::vector<GemmUse> gemm_cuts(const ModelShape& shape, const AttentionShare& attention,
                               const ExpertShare& experts = {});

}  // namespace atl::compute
