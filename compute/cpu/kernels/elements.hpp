#pragma once
// The 16-bit elements that kernels load and store, included once per instruction set (see simd.hpp
// for why all is anonymous).

#include <cstdint>

namespace atl::compute {
namespace {

struct Bf16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};
/// Two neighbours, which some instruction sets multiply and add at once.
struct Bf16Pair {
  Bf16 of[2];
};

}  // namespace
}  // namespace atl::compute
