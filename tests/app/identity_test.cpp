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
            "arithmetic was unknown and is 3 (norms of whole rows add up head by head)");
}

TEST(Identity, WhereWeightsChangeTheModelIsNoPartOfIt) {
  RunOptions options;
  options.control = "folder";
  const auto of = [&](std::uint64_t model) {
    return identity_of(options, model, DType::bfloat16, {"cpu", "avx2", ""}, {});
  };
  EXPECT_EQ(difference(of(1), of(2)), "");
  const auto drained = of(1);
  options.update = UpdateMode::in_flight;
  EXPECT_EQ(difference(drained, of(1)), "update was drain and is in-flight");
  const auto plain = identity_of(RunOptions(), 1, DType::bfloat16, {"cpu", "avx2", ""}, {});
  EXPECT_NE(difference(plain, drained).find("model was 0000000000000001"), std::string::npos);
}

}  // namespace
}  // namespace atl
