// The presets: shapes of the models that Atoll is measured on, and small ones of equal structure.

#include <fmt/format.h>

#include "app/model/model_config.hpp"
#include "compute/error.hpp"

namespace atl {
namespace {

struct Preset {
  const char* name;
  int layers;
  int dense_first;
  int hidden;
  int heads;
  int head_dim;
  int ffn_hidden;  ///< of dense MLPs and of experts alike
  int experts;
  int vocab;
  DType dtype;
};

// The large ones stand for models with a subword vocabulary of common size; 256 is bytes, so that
// text prompts work.
constexpr int large_vocab = 32768;
constexpr int byte_vocab = 256;

constexpr Preset presets[] = {
    {"moe-61l", 61, 3, 7168, 128, 128, 2048, 64, large_vocab, DType::bfloat16},
    {"moe-16l", 16, 0, 4096, 32, 128, 16384, 16, large_vocab, DType::bfloat16},
    {"moe-4l", 4, 0, 8192, 16, 512, 32768, 16, large_vocab, DType::float16},
    {"moe-61l-tiny", 61, 3, 64, 8, 16, 32, 64, byte_vocab, DType::bfloat16},
    {"moe-16l-tiny", 16, 0, 64, 8, 16, 128, 16, byte_vocab, DType::bfloat16},
    {"moe-4l-tiny", 4, 0, 64, 8, 16, 128, 16, byte_vocab, DType::float16},
    {"bench-cpu", 4, 1, 1024, 16, 64, 4096, 16, byte_vocab, DType::bfloat16},
};

ModelConfig config_of(const Preset& p) {
  ModelConfig config;
  ModelShape& shape = config.shape;
  shape.hidden = p.hidden;
  shape.num_layers = p.layers;
  shape.num_heads = p.heads;
  shape.num_kv_heads = p.heads;
  shape.head_dim = p.head_dim;
  shape.intermediate = p.ffn_hidden;
  shape.moe_intermediate = p.ffn_hidden;
  shape.num_experts = p.experts;
  shape.top_k = 2;
  shape.vocab = p.vocab;
  shape.max_positions = 16384;
  shape.norm_topk_prob = true;
  shape.activation = Activation::gelu_tanh;
  shape.qk_norm = QkNorm::none;
  shape.layer_is_dense.assign(static_cast<std::size_t>(p.layers), false);
  for (int layer = 0; layer < p.dense_first; ++layer) {
    shape.layer_is_dense[static_cast<std::size_t>(layer)] = true;
  }
  config.dtype = p.dtype;
  return config;
}

}  // namespace

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& p : presets) names.emplace_back(p.name);
  return names;
}

ModelConfig preset(std::string_view name) {
  for (const Preset& p : presets) {
    if (name == p.name) return config_of(p);
  }
  throw UsageError(fmt::format("unknown preset \"{}\"; choose one of {}", name,
                               fmt::join(preset_names(), ", ")));
}

}  // namespace atl
