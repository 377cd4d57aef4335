#pragma once
// The tables of kernels that tests try: those of instruction sets, and two over vectors of 16 in
// plain loops (see simd_of_loops.hpp), as AVX-512 without and with BF16 instantiates them.

#include <fmt/format.h>

#include <array>
#include <string>
#include <string_view>
#include <tuple>

#include "compute/cpu/kernels.hpp"

namespace atl::testing {

inline constexpr std::array<const char*, 5> kernel_tables = {"avx2", "avx512", "avx512_bf16",
                                                             "loops", "loops_and_pairs"};

const compute::Kernels& kernels_of_loops(DType dtype);
const compute::Kernels& kernels_of_loops_and_pairs(DType dtype);

/// Null where this CPU has not got it.
inline const compute::Kernels* kernel_table(std::string_view name, DType dtype) {
  if (name == "loops") return &kernels_of_loops(dtype);
  if (name == "loops_and_pairs") return &kernels_of_loops_and_pairs(dtype);
  const auto isa = compute::cpu_isa_named(name).value();
  return isa > compute::cpu_isa() ? nullptr : &compute::kernels_for(dtype, isa);
}

/// What a test over a table and an element type is called.
inline std::string table_name(const std::tuple<const char*, DType>& table) {
  return fmt::format("{}_{}", std::get<0>(table), name_of(std::get<1>(table)));
}

}  // namespace atl::testing
