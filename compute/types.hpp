#pragma once
// Element types, host tensors and the numbers that shape a model's arithmetic.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace atl {

/// Element type of weights and activations.
enum class DType : std::uint8_t { bfloat16, float16, float32 };

constexpr std::size_t size_of(DType type) {
  return type == DType::float32 ? 4 : 2;
}

constexpr std::string_view name_of(DType type) {
  switch (type) {
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
    case DType::float32:
      return "float32";
  }
  return "?";
}

/// Row-major matrix (or vector, rows = 1) in host memory, not owned.
struct HostTensor {
  const void* data = nullptr;
  DType dtype = DType::bfloat16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

enum class Activation : std::uint8_t {
  gelu_tanh,  ///< down(gelu(up(x))), gelu in its tanh form
  swiglu,     ///< down(silu(gate(x)) * up(x))
};

/// Where q and k are RMS-normalised before RoPE.
enum class QkNorm : std::uint8_t {
  none,
  per_head,   ///< over head_dim, weight [head_dim] (Qwen3)
  whole_row,  ///< over heads * head_dim, weight [heads * head_dim] (OLMoE)
};

/// All numbers the arithmetic of one model needs. `T` is a count of tokens, `H` is `hidden`.
struct ModelShape {
  int hidden = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate = 0;      ///< hidden width of a dense MLP
  int moe_intermediate = 0;  ///< hidden width of one expert
  int num_experts = 0;
  int top_k = 0;
  int vocab = 0;
  int max_positions = 0;
  bool norm_topk_prob = true;
  Activation activation = Activation::swiglu;
  QkNorm qk_norm = QkNorm::none;
  float rms_eps = 1e-6F;
  double rope_theta = 10000.0;
  std::vector<bool> layer_is_dense;  ///< [num_layers]

  bool is_dense(int layer) const { return layer_is_dense[static_cast<std::size_t>(layer)]; }
  int q_width() const { return num_heads * head_dim; }
  int kv_width() const { return num_kv_heads * head_dim; }
};

}  // namespace atl
