#include "compute/model_shape.hpp"

namespace atl {

bool is_plain(const ModelShape& shape) {
  const ModelShape none;
  return shape.value_dim == 0 && shape.attentions.empty() && shape.ropes.empty() &&
         !shape.latent.used() && !shape.norm_after_rope && !shape.qkv_bias && !shape.output_bias &&
         shape.attention_scale == 0 && shape.value_scale == 1 &&
         shape.temperature == none.temperature && shape.router == none.router &&
         !shape.expert_bias && shape.activation != Activation::swiglu_clamped &&
         !shape.has_shared_expert() && shape.embedding_scale == 1 && shape.index_top_k == 0;
}

}  // namespace atl
