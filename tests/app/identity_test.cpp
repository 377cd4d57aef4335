// What makes two runs the same, beside the instruction sets (isa_test.cpp).
#include "app/run/identity.hpp"

#include <gtest/gtest.h>

namespace atl {
namespace {

/// Neither results nor checkpoints of other arithmetic are gone on with.
TEST(Identity, AVersionWithOtherArithmeticMadeAnotherRun) {
  const auto now = identity_of(RunOptions(), 1, DType::bfloat16, {"cpu", "avx2", ""}, {});
  EXPECT_EQ(difference(now, now), "");
  auto before = now;
  before.erase("arithmetic");  // as written while x was rounded to the activations' type
  EXPECT_EQ(difference(before, now),
            "arithmetic was unknown and is 2 (residual stream in float32)");
}

}  // namespace
}  // namespace atl
