#pragma once
// Which instruction sets the CPU backend computes with. Results have other bits with each, so that
// all ranks of a run, and all runs of a job, must use the same.

#include <cstdint>
#include <optional>
#include <string_view>

#include "compute/types.hpp"
#include "compute/weights.hpp"

namespace atl::compute {

/// Rising: a CPU that has one has those before it.
enum class CpuIsa : std::uint8_t { avx2, avx512, avx512_bf16, avx512_amx };

/// "avx2", "avx512", "avx512_bf16", "avx512_amx".
const char* name_of(CpuIsa isa);
std::optional<CpuIsa> cpu_isa_named(std::string_view name);

/// The widest under oneDNN's limit of this name, as in "AVX512_CORE"; an unknown name limits
/// nothing.
CpuIsa most_under_limit(std::string_view limit);

/// The widest that both this CPU and ONEDNN_MAX_CPU_ISA allow. Throws Error when the CPU has no
/// AVX2.
CpuIsa widest_cpu_isa();

/// widest_cpu_isa(), but AMX, whose GEMMs are oneDNN's, only where oneDNN has it and those of this
/// model, and of ranks that share its attention or its experts, keep their rows' bits (see
/// row_check.hpp). Takes a second or more for each shape of GEMM on such CPUs; before
/// use_cpu_isa().
CpuIsa widest_cpu_isa_for(const ModelShape& shape, DType dtype,
                          const AttentionShare& attention = {}, const ExpertShare& experts = {});

/// Before any arithmetic: this process computes with `isa`, which is at most the widest. Throws
/// Error where it computes with another one already.
void use_cpu_isa(CpuIsa isa);

/// What this process computes with: what use_cpu_isa() said, else the widest from now on.
CpuIsa cpu_isa();

/// The same, but what is not settled yet stays so: for plans.
CpuIsa expected_cpu_isa();

}  // namespace atl::compute
