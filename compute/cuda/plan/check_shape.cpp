#include "compute/cuda/plan/check_shape.hpp"

#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/error.hpp"

namespace atl::compute::cuda {

namespace {

/// The first thing of the model that this backend does not compute; null: there is none.
const char* missing_kind(const ModelShape& s) {
  const bool softmax = s.router.score == RouterScore::softmax;
  if (softmax && s.router.logit_bias) return "biases of logits below a softmax";
  if (s.router.groups > 32) return "more than 32 groups of experts";
  return nullptr;
}

}  // namespace

void check_shape(const BackendOptions& options) {
  const ModelShape& shape = options.shape;
  const char* missing = missing_kind(shape);
  require(missing == nullptr,
          "this model has {}, which are not supported on CUDA; use --backend cpu",
          missing == nullptr ? "" : missing);
  const Part& part = options.part;
  require(shape.num_experts <= max_experts && shape.top_k <= max_top_k,
          "cannot route to {} of {} experts on CUDA (at most {} of {}); use --backend cpu",
          shape.top_k, shape.num_experts, max_top_k, max_experts);
  require(
      part.most_places() + 2 * part.num_nodes() <= max_groups,
      "cannot route to {} replicas of a layer's experts on {} nodes on CUDA (at most {} replicas "
      "and twice the nodes); use fewer replicas (--slots, --placement), or --backend cpu",
      part.most_places(), part.num_nodes(), max_groups);
  require(shape.head_dim >= 2 && shape.head_dim <= max_head_dim && shape.head_dim % 2 == 0,
          "cannot attend with head_dim {} on CUDA (even numbers up to {}); use --backend cpu",
          shape.head_dim, max_head_dim);
  require(!shape.latent.used() ||
              (shape.latent.width() <= latent_head_dim && shape.latent.keys <= max_head_dim),
          "cannot attend to latents of {} and {} dimensions on CUDA (at most {}, and {} together); "
          "use --backend cpu",
          shape.latent.keys, shape.latent.rope, max_head_dim, latent_head_dim);
  require(shape.num_kv_heads >= 1 && shape.num_heads % shape.num_kv_heads == 0,
          "cannot attend with {} query heads over {} kv heads (not a multiple); check the model's "
          "configuration",
          shape.num_heads, shape.num_kv_heads);
  require(options.page_tokens > 0 && options.page_tokens % key_block == 0,
          "cannot use KV pages of {} tokens; use a multiple of {}", options.page_tokens, key_block);
}

}  // namespace atl::compute::cuda
