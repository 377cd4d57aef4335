#pragma once
// Tokens' choices of a routing file, in two parts: one to make a placement from, one to try it on.

#include <string>
#include <vector>

#include "app/plan/expert_choices.hpp"

namespace atl {

struct SampleOptions {
  std::string path;     ///< recorded, or a .npy of shape [tokens, layers, k]
  int top_k = 0;        ///< the first ones of a token count; 0: all
  int num_experts = 0;  ///< of a .npy, which does not say; 0: the largest number and one
  int first_layer = 0;  ///< of a .npy: the model's number of its first layer; the others follow
  double held_out = 0;  ///< share of the tokens, the last ones
};

struct RoutingSample {
  std::vector<int> layers;                         ///< their numbers in the model
  std::vector<ExpertChoices> made_from, held_out;  ///< [layers]
};

/// Of a recorded file with several requests each is in one part, whole. Throws Error: no such file,
/// no tokens, choices that cannot be, or options that do not fit it.
RoutingSample read_sample(const SampleOptions& options);

}  // namespace atl
