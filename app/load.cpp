#include "app/load.hpp"

#include <fmt/format.h>

#include <string>

namespace atl {

namespace {

using compute::Weight;

class Loader {
 public:
  Loader(io::ModelFileReader& file, compute::Backend& backend) : file_(file), backend_(backend) {}

  /// One whole tensor.
  void load(Weight weight, int layer, const std::string& path) { load(weight, layer, -1, {path}); }

  /// One slab of a stacked expert tensor.
  void load_expert(Weight weight, int layer, int local_expert, const std::string& path,
                   int expert) {
    load(weight, layer, local_expert, {path}, expert);
  }

  /// Several matrices of equal width, one under the other (q, k and v).
  void load(Weight weight, int layer, int local_expert, const std::vector<std::string>& paths,
            std::int64_t slab = 0) {
    std::vector<io::DatasetInfo> parts;
    std::size_t bytes = 0;
    for (const std::string& path : paths) {
      parts.push_back(file_.dataset(path));
      bytes += static_cast<std::size_t>(parts.back().slab_bytes());
    }
    if (buffer_.size() < bytes) buffer_.resize(bytes);
    HostTensor tensor;
    tensor.data = buffer_.data();
    tensor.dtype = parts.front().dtype;
    std::size_t at = 0;
    for (const io::DatasetInfo& part : parts) {
      const auto size = static_cast<std::size_t>(part.slab_bytes());
      file_.read_slab(part, slab, std::span(buffer_).subspan(at, size));
      at += size;
      const bool vector = part.shape.size() == 1;
      tensor.cols = part.shape.back();
      tensor.rows += vector ? 1 : part.shape[part.shape.size() - 2];
    }
    backend_.load_weight(weight, layer, local_expert, tensor);
  }

 private:
  io::ModelFileReader& file_;
  compute::Backend& backend_;
  std::vector<std::byte> buffer_;
};

void load_ffn(Loader& loader, const ModelShape& shape, int layer, const std::string& mlp,
              const std::vector<int>& local_experts) {
  const bool gated = shape.activation == Activation::swiglu;
  if (shape.is_dense(layer)) {
    loader.load(Weight::up, layer, mlp + "up_proj/weight");
    if (gated) loader.load(Weight::gate, layer, mlp + "gate_proj/weight");
    loader.load(Weight::down, layer, mlp + "down_proj/weight");
    return;
  }
  loader.load(Weight::router, layer, mlp + "gate/weight");
  const std::string experts = mlp + "experts/";
  for (std::size_t i = 0; i < local_experts.size(); ++i) {
    const int local = static_cast<int>(i);
    loader.load_expert(Weight::up, layer, local, experts + "up_proj/weight", local_experts[i]);
    if (gated) {
      loader.load_expert(Weight::gate, layer, local, experts + "gate_proj/weight",
                         local_experts[i]);
    }
    loader.load_expert(Weight::down, layer, local, experts + "down_proj/weight", local_experts[i]);
  }
}

}  // namespace

void load_weights(io::ModelFileReader& file, const ModelConfig& config,
                  const std::vector<int>& local_experts, compute::Backend& backend) {
  const ModelShape& shape = config.shape;
  Loader loader(file, backend);
  const std::string embedding = "/model/embed_tokens/weight";
  loader.load(Weight::embedding, -1, embedding);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const std::string prefix = fmt::format("/model/layers/{}/", layer);
    const std::string attention = prefix + "self_attn/";
    loader.load(Weight::attention_norm, layer, prefix + "input_layernorm/weight");
    loader.load(
        Weight::qkv, layer, -1,
        {attention + "q_proj/weight", attention + "k_proj/weight", attention + "v_proj/weight"});
    if (shape.qk_norm != QkNorm::none) {
      loader.load(Weight::q_norm, layer, attention + "q_norm/weight");
      loader.load(Weight::k_norm, layer, attention + "k_norm/weight");
    }
    loader.load(Weight::o, layer, attention + "o_proj/weight");
    loader.load(Weight::ffn_norm, layer, prefix + "post_attention_layernorm/weight");
    load_ffn(loader, shape, layer, prefix + "mlp/", local_experts);
  }
  loader.load(Weight::final_norm, -1, "/model/norm/weight");
  loader.load(Weight::lm_head, -1, config.tie_word_embeddings ? embedding : "/lm_head/weight");
  backend.finish_loading();
}

}  // namespace atl
