#pragma once
// The choice of experts, included once per instruction set (see simd.hpp for why all is anonymous).

#include <cstdint>
#include <limits>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/activation.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// Fills e^(x - max) over x and returns their sum; lanes are added in a fixed order.
inline double exponentials(float* x, std::int64_t count) {
  Vec top = broadcast(x[0]);
  for (std::int64_t i = 0; i < count; i += lanes) {
    top = max(top, first_lanes(static_cast<int>(count - i < lanes ? count - i : lanes),
                               load(x + i, count - i), top));
  }
  const Vec highest = broadcast(largest(top));
  double total = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const Vec e = exp(load(x + i, count - i) - highest);
    store(x + i, e, count - i);
    total +=
        sum(first_lanes(static_cast<int>(count - i < lanes ? count - i : lanes), e, broadcast(0)));
  }
  return total;
}

/// Fills softmax(logits) over them.
inline void softmax(float* logits, int num_experts) {
  const float total = static_cast<float>(exponentials(logits, num_experts));
  for (int e = 0; e < num_experts; ++e) logits[e] /= total;
}

/// Fills 1 / (1 + e^-x) over x.
inline void sigmoids(float* x, int count) {
  for (int i = 0; i < count; i += lanes) {
    store(x + i, times_sigmoid(broadcast(1.0F), load(x + i, count - i)), count - i);
  }
}

/// Logits become scores: of softmax_of_chosen they stay logits.
inline void make_scores(const ChooseArgs& args) {
  if (args.logit_bias != nullptr) {
    for (int e = 0; e < args.num_experts; ++e) args.logits[e] += args.logit_bias[e];
  }
  if (args.router->score == RouterScore::softmax) softmax(args.logits, args.num_experts);
  if (args.router->score == RouterScore::sigmoid) sigmoids(args.logits, args.num_experts);
}

/// What a group of `size` experts is chosen by.
inline float group_score(const float* choices, int size, GroupScore score) {
  float best = choices[0];
  float second = -std::numeric_limits<float>::infinity();
  for (int e = 1; e < size; ++e) {
    if (choices[e] > best) {
      second = best;
      best = choices[e];
    } else if (choices[e] > second) {
      second = choices[e];
    }
  }
  return score == GroupScore::best || size == 1 ? best : best + second;
}

/// The best of `count` values that is not taken, ties to the lower index; the lowest where all that
/// are left are NaN.
inline int best_left(const float* values, int count, const std::int32_t* taken, int num_taken) {
  int best = -1;
  for (int e = 0; e < count; ++e) {
    bool used = false;
    for (int i = 0; i < num_taken; ++i) used = used || taken[i] == e;
    if (!used && (best < 0 || values[e] > values[best])) best = e;
  }
  return best;
}

/// Experts outside the best groups cannot be chosen.
inline void keep_best_groups(const ChooseArgs& args) {
  const Router& router = *args.router;
  const int size = args.num_experts / router.groups;
  float scores[max_router_groups];
  std::int32_t kept[max_router_groups];
  for (int g = 0; g < router.groups; ++g) {
    scores[g] = group_score(args.choices + g * size, size, router.group_score);
  }
  for (int i = 0; i < router.top_groups; ++i) kept[i] = best_left(scores, router.groups, kept, i);
  for (int g = 0; g < router.groups; ++g) {
    bool stays = false;
    for (int i = 0; i < router.top_groups; ++i) stays = stays || kept[i] == g;
    for (int e = g * size; !stays && e < (g + 1) * size; ++e) {
      args.choices[e] = -std::numeric_limits<float>::infinity();
    }
  }
}

/// Weights of the experts that were chosen, or given.
inline void weigh(const ChooseArgs& args) {
  const Router& router = *args.router;
  float total = 0;
  for (int j = 0; j < args.top_k; ++j) args.weights[j] = args.logits[args.experts[j]];
  if (router.score == RouterScore::softmax_of_chosen) return softmax(args.weights, args.top_k);
  for (int j = 0; j < args.top_k; ++j) total += args.weights[j];
  if (total < router.normalise_floor) total = router.normalise_floor;
  for (int j = 0; args.normalise && j < args.top_k; ++j) args.weights[j] /= total;
  for (int j = 0; router.scale != 1 && j < args.top_k; ++j) args.weights[j] *= router.scale;
}

/// The experts with the largest scores and offsets; the sum of their scores.
inline float take_best(const ChooseArgs& args, const float* balance) {
  const Router& router = *args.router;
  const float* by = args.logits;
  if (args.offsets != nullptr || balance != nullptr || router.groups > 1) {
    for (int e = 0; e < args.num_experts; ++e) {
      args.choices[e] = args.logits[e] + (args.offsets != nullptr ? args.offsets[e] : 0.0F) +
                        (balance != nullptr ? balance[e] : 0.0F);
    }
    if (router.groups > 1) keep_best_groups(args);
    by = args.choices;
  }
  float sum = 0;
  for (int j = 0; j < args.top_k; ++j) {
    args.experts[j] = best_left(by, args.num_experts, args.experts, j);
    sum += args.logits[args.experts[j]];
  }
  return sum;
}

/// Where a logit is NaN or plus infinity every probability is NaN, and the lowest experts are
/// taken.
inline void choose(const ChooseArgs& args) {
  make_scores(args);
  const float own = take_best(args, nullptr);
  if (args.balance != nullptr) *args.given_up = own - take_best(args, args.balance);
  weigh(args);
}

inline void weights_of(const ChooseArgs& args) {
  make_scores(args);
  weigh(args);
}

}  // namespace
}  // namespace atl::compute
