#pragma once
// The arithmetic of sampling, the same to the last bit on every backend: for the C++ compiler and
// for nvcc. Weights are whole numbers, so that their sums are exact and no order of adding matters.
// What compiles this must not contract multiplications and additions.

#include <cstdint>
#include <cstring>

#include "compute/both.hpp"
#include "compute/sampling.hpp"

namespace atl::compute {

/// log2(e): the scale of temperature 1.
inline constexpr double scale_of_one = 1.4426950408889634;

/// Weight of the most probable token; others have less.
inline constexpr int weight_bits = 40;

ATOLL_BOTH inline std::uint32_t bits_of(float x) {
  std::uint32_t bits = 0;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
ATOLL_BOTH inline float float_of(std::uint32_t bits) {
  float x = 0;
  memcpy(&x, &bits, sizeof x);
  return x;
}

ATOLL_BOTH inline bool is_finite(float x) {
  return (bits_of(x) & 0x7f800000U) != 0x7f800000U;
}

/// Orders finite logits as whole numbers; -0 and 0 are equal. Above 0 for all of them.
ATOLL_BOTH inline std::uint32_t key_of(float logit) {
  const std::uint32_t bits = bits_of(logit + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
ATOLL_BOTH inline float logit_of(std::uint32_t key) {
  return float_of((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

/// 2^40 * 2^((logit - best) * scale), rounded; `best` is the largest logit. Exact to 24 bits or a
/// unit, whichever is more; 2^40 for the best.
ATOLL_BOTH inline std::uint64_t weight_of(float logit, float best, double scale) {
  const double x = (static_cast<double>(logit) - static_cast<double>(best)) * scale;
  if (!(x > -weight_bits - 1.0)) return 0;
  constexpr double rounder = 6755399441055744.0;  // 1.5 * 2^52: the sum's low bits are round(x)
  const double shifted = x + rounder;
  std::uint64_t bits = 0;
  memcpy(&bits, &shifted, sizeof bits);
  const auto whole = static_cast<std::int32_t>(static_cast<std::uint32_t>(bits));
  const auto f = static_cast<float>(x - (shifted - rounder));  // in [-0.5, 0.5]
  // The series of 2^f; its first term left out is below 6e-9.
  float p = 1.5252734e-5F;
  p = p * f + 1.5403530e-4F;
  p = p * f + 1.3333558e-3F;
  p = p * f + 9.6181291e-3F;
  p = p * f + 5.5504109e-2F;
  p = p * f + 2.4022651e-1F;
  p = p * f + 6.9314718e-1F;
  p = p * f + 1.0F;
  constexpr int bias = 127;
  constexpr int mantissa_bits = 23;
  const float power =
      float_of(static_cast<std::uint32_t>(whole + weight_bits + bias) << mantissa_bits);
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(p * power + 0.5F));
}

/// Weights of one draw's tokens.
struct Weights {
  float best = 0;  ///< the largest logit
  double scale = 0;
  std::uint64_t least = 0;  ///< what weighs less is left out

  ATOLL_BOTH std::uint64_t operator()(float logit) const {
    const std::uint64_t weight = weight_of(logit, best, scale);
    return weight < least ? 0 : weight;
  }
};

/// A logit as it is drawn from: finite whatever is asked for.
ATOLL_BOTH inline float changed_logit(float logit, const LogitChange& change, const Draw& draw) {
  constexpr double largest = 3.4028234663852886e38;
  if (change.banned) return static_cast<float>(-largest);
  double x = static_cast<double>(logit) + static_cast<double>(change.bias);
  if (change.repeated) {
    x = x > 0 ? x / draw.repetition_penalty : x * draw.repetition_penalty;
  }
  const double by_frequency = draw.frequency_penalty * static_cast<double>(change.generated);
  x = x - by_frequency;
  if (change.generated > 0) x = x - draw.presence_penalty;
  if (x > largest) x = largest;
  if (x < -largest) x = -largest;
  return static_cast<float>(x);
}

/// Orders tokens by falling logit, then by id: the larger is more probable. Never 0.
ATOLL_BOTH inline std::uint64_t rank_of(float logit, std::int32_t id) {
  return (std::uint64_t{key_of(logit)} << 32U) | static_cast<std::uint32_t>(~id);
}
ATOLL_BOTH inline std::int32_t token_of_rank(std::uint64_t rank) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(rank));
}
ATOLL_BOTH inline float logit_of_rank(std::uint64_t rank) {
  return logit_of(static_cast<std::uint32_t>(rank >> 32U));
}

/// The weight that the kept tokens must reach, between 1 and `total`.
ATOLL_BOTH inline std::uint64_t wanted_weight(std::uint64_t total, double top_p) {
  const double exact = top_p * static_cast<double>(total);
  auto wanted = static_cast<std::uint64_t>(exact);
  if (static_cast<double>(wanted) < exact) ++wanted;
  if (wanted < 1) wanted = 1;
  return wanted < total ? wanted : total;
}

/// What top-k or top-p keeps: every token whose key is above `key`, and of those with this key the
/// `equals` lowest ids. `weight` is the sum of all that.
struct Kept {
  std::uint32_t key = 0;
  std::uint64_t equals = 0;
  std::uint64_t weight = 0;
};

/// What reaches `wanted`, once tokens above `key` weigh `above` < wanted, and one with it `each`
/// (above 0).
ATOLL_BOTH inline Kept kept_of(std::uint32_t key, std::uint64_t above, std::uint64_t each,
                               std::uint64_t wanted) {
  const std::uint64_t equals = (wanted - above + each - 1) / each;
  return {key, equals, above + equals * each};
}

/// floor(weight * random / 2^64): which unit of the weight is drawn.
ATOLL_BOTH inline std::uint64_t drawn_unit(std::uint64_t weight, std::uint64_t random) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>((static_cast<Wide>(weight) * random) >> 64U);
}

}  // namespace atl::compute
