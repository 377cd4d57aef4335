#pragma once
// Models with random weights, for measurements and tests.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "app/model/model_config.hpp"

namespace atl {

/// Fills `bytes` with the elements [first, first + n) of a tensor of random values. An element
/// depends on seed, name and index alone: nearly normal (the sum of four uniform values, so within
/// 3.5 deviations), mean 0.
void fill_random(std::uint64_t seed, std::string_view name, std::int64_t first, double deviation,
                 DType dtype, std::span<std::byte> bytes);

/// Writes a model of random weights: matrices with deviation 1/sqrt(fan-in), embeddings with 1,
/// norms all 1. Collective over `num_ranks` ranks of `mpi_comm_f` (a Fortran handle, or
/// io::single_process), each making its share of the slabs; the file's bytes do not depend on the
/// number of ranks. Throws Error on all ranks alike.
void init_model(const ModelConfig& config, std::uint64_t seed, const std::string& output, int rank,
                int num_ranks, int mpi_comm_f);

}  // namespace atl
