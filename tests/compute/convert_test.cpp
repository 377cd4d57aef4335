// Finding values that are not finite: every type, every place in a block, and what is too large.

#include "compute/convert.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace atl::compute {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<std::byte> stored(const std::vector<float>& values, DType type) {
  std::vector<std::byte> bytes(values.size() * size_of(type));
  convert(std::as_bytes(std::span(values)), DType::float32, bytes, type);
  return bytes;
}

TEST(FindNonFinite, FindsNothingAmongFiniteValues) {
  for (const DType type : {DType::float32, DType::bfloat16, DType::float16}) {
    const float largest = type == DType::float16 ? 65504.0F : 3.3e38F;
    EXPECT_FALSE(find_non_finite({}, type));
    EXPECT_FALSE(
        find_non_finite(stored({0.0F, -0.0F, 1e-8F, largest, -largest, -1.5F}, type), type));
  }
}

TEST(FindNonFinite, FindsOneAnywhere) {
  for (const DType type : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const float bad : {nan, -nan, infinity, -infinity}) {
      for (const std::size_t at : {0, 1, 15, 4095, 4096, 5000, 8191, 8192, 8194}) {
        std::vector<float> values(8195, 1.0F);
        values[at] = bad;
        const auto found = find_non_finite(stored(values, type), type);
        ASSERT_TRUE(found);
        EXPECT_EQ(found->count, 1);
        EXPECT_EQ(found->num_nan, std::isnan(bad) ? 1 : 0);
        EXPECT_EQ(found->num_infinite, std::isnan(bad) ? 0 : 1);
        EXPECT_EQ(found->first, static_cast<std::int64_t>(at));
      }
    }
  }
}

/// What conversion makes infinite is found before, and nothing below it.
TEST(FindNonFinite, FindsWhatIsTooLargeForItsUse) {
  struct Case {
    float fits;
    float too_large;
    DType type;
    DType used_as;
  };
  const std::vector<Case> cases = {
      {65519.996F, 65520.0F, DType::float32, DType::float16},
      {65280.0F, 65536.0F, DType::bfloat16, DType::float16},
      {3.3895e38F, std::numeric_limits<float>::max(), DType::float32, DType::bfloat16},
  };
  for (const Case& c : cases) {
    const auto fits = stored({c.fits, -c.fits}, c.type);
    EXPECT_FALSE(find_non_finite(fits, c.type, c.used_as));
    std::vector<std::byte> used(2 * size_of(c.used_as));
    EXPECT_NO_THROW(convert(fits, c.type, used, c.used_as));
    const auto large = stored({1.0F, -c.too_large}, c.type);
    EXPECT_FALSE(find_non_finite(large, c.type));
    const auto found = find_non_finite(large, c.type, c.used_as);
    ASSERT_TRUE(found);
    EXPECT_EQ(text_of(*found, std::vector<std::int64_t>{2, 1}),
              "1 value that is not finite (1 too large), the first at [1, 0]");
    EXPECT_ANY_THROW(convert(large, c.type, used, c.used_as));
  }
  // Every bfloat16 and half is a float32.
  EXPECT_FALSE(
      find_non_finite(stored({3.3e38F}, DType::bfloat16), DType::bfloat16, DType::float32));
  EXPECT_TRUE(find_non_finite(stored({nan}, DType::float16), DType::float16, DType::float32));
}

/// A scale is named from the least on with which the code's largest number becomes infinite.
TEST(FindNonFiniteScales, FindsWhatMakesTheLargestNumberInfinite) {
  constexpr float below_half = 65519.996F;  // the next float32 rounds to infinity
  const auto scale = [](float value) { return stored({1e-3F, value}, DType::float32); };
  for (const auto& [code, largest] : {std::pair(Code::fp8, 448.0F), std::pair(Code::int4, 8.0F)}) {
    for (const float sign : {1.0F, -1.0F}) {
      const auto fits = scale(sign * below_half / largest);
      EXPECT_FALSE(find_non_finite_scales(fits, code, DType::float16, DType::float16));
      const auto large = scale(sign * 65521.0F / largest);
      EXPECT_FALSE(find_non_finite_scales(large, code, DType::bfloat16, DType::float32));
      const auto used = find_non_finite_scales(large, code, DType::bfloat16, DType::float16);
      ASSERT_TRUE(used);
      EXPECT_EQ(text_of(*used, std::vector<std::int64_t>{2, 1}),
                "1 value that is not finite (1 too large), the first at [1, 0]");
      const auto infinite = find_non_finite_scales(large, code, DType::float16, DType::float32);
      ASSERT_TRUE(infinite);
      EXPECT_EQ(infinite->num_infinite, 1);
      EXPECT_FALSE(find_non_finite_scales(scale(sign * 3.389e38F / largest), code, DType::bfloat16,
                                          DType::bfloat16));
      EXPECT_TRUE(find_non_finite_scales(scale(sign * 3.397e38F / largest), code, DType::bfloat16,
                                         DType::float32));
    }
  }
  const auto found = find_non_finite_scales(stored({nan, infinity, 1.0F, 2e38F}, DType::float32),
                                            Code::fp8, DType::bfloat16, DType::float16);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->count, 3);
  EXPECT_EQ(found->num_nan, 1);
  EXPECT_EQ(found->num_infinite, 2);
}

TEST(FindNonFiniteScales, ReadsExponents) {
  const auto of = [](int scale, DType type, DType used_as) {
    const std::vector<std::byte> scales = {std::byte{0}, static_cast<std::byte>(scale)};
    return find_non_finite_scales(scales, Code::mxfp4, type, used_as).value_or(NonFinite{});
  };
  const DType brain = DType::bfloat16;
  EXPECT_EQ(of(0xfc, brain, brain).count, 0);  // 6 x 2^125
  EXPECT_EQ(of(0xfd, brain, brain).num_infinite, 1);
  EXPECT_EQ(of(0xfe, brain, brain).num_infinite, 1);
  EXPECT_EQ(of(0xff, brain, brain).num_nan, 1);
  EXPECT_EQ(of(0xff, brain, brain).first, 1);
  EXPECT_EQ(of(127 + 13, brain, DType::float16).count, 0);
  const NonFinite used = of(127 + 14, brain, DType::float16);
  EXPECT_EQ(used.count, 1);
  EXPECT_EQ(used.num_infinite, 0);
}

TEST(FindNonFinite, AddsSlabsInAnyOrder) {
  NonFinite all;
  all.add(*find_non_finite(stored({0, nan, infinity, 0}, DType::float32), DType::float32), 8);
  all.add(*find_non_finite(stored({0, 0, 0, nan}, DType::float32), DType::float32), 4);
  all.add({}, 0);
  EXPECT_EQ(text_of(all, std::vector<std::int64_t>{3, 2, 2}),
            "3 values that are not finite (2 NaN, 1 infinite), the first at [1, 1, 1]");
}

}  // namespace
}  // namespace atl::compute
