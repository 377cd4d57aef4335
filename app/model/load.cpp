#include "app/model/load.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <unordered_map>

namespace atl {

namespace {

using compute::Weight;

/// Tensors that a warning names.
constexpr std::size_t most_named = 8;

/// Whether a backend keeps it in float32, whatever its activations are.
bool is_norm(Weight weight) {
  switch (weight) {
    case Weight::attention_norm:
    case Weight::ffn_norm:
    case Weight::final_norm:
    case Weight::q_norm:
    case Weight::k_norm:
      return true;
    default:
      return false;
  }
}

class Loader {
 public:
  Loader(io::ModelFileReader& file, DType dtype, compute::Backend& backend)
      : file_(file), dtype_(dtype), backend_(backend) {
    for (const io::DatasetInfo& dataset : file.datasets()) {
      index_of_.emplace(dataset.path, static_cast<std::int64_t>(index_of_.size()));
    }
  }

  std::vector<NonFiniteSlab>& non_finite() { return non_finite_; }

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
      const auto elements = std::span(buffer_).subspan(at, size);
      file_.read_slab(part, slab, elements);
      const DType used_as = is_norm(weight) ? DType::float32 : dtype_;
      if (const auto found = compute::find_non_finite(elements, part.dtype, used_as)) {
        non_finite_.push_back({index_of_.at(part.path), slab, *found});
      }
      at += size;
      const bool vector = part.shape.size() == 1;
      tensor.cols = part.shape.back();
      tensor.rows += vector ? 1 : part.shape[part.shape.size() - 2];
    }
    backend_.load_weight(weight, layer, local_expert, tensor);
  }

 private:
  io::ModelFileReader& file_;
  DType dtype_;
  compute::Backend& backend_;
  std::unordered_map<std::string, std::int64_t> index_of_;
  std::vector<std::byte> buffer_;
  std::vector<NonFiniteSlab> non_finite_;
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

std::vector<NonFiniteSlab> load_weights(io::ModelFileReader& file, const ModelConfig& config,
                                        const std::vector<int>& local_experts, DType dtype,
                                        compute::Backend& backend) {
  const ModelShape& shape = config.shape;
  Loader loader(file, dtype, backend);
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
  return std::move(loader.non_finite());
}

bool warn_of_non_finite(const comm::Communicator& world, const io::ModelFileReader& file,
                        DType dtype, const std::vector<NonFiniteSlab>& found) {
  // Ranks share what is not an expert's, and a tied head is read twice.
  std::map<std::pair<std::int64_t, std::int64_t>, compute::NonFinite> slabs;
  for (const auto& of_rank : world.gather_vectors(std::span(found), 0)) {
    for (const NonFiniteSlab& slab : of_rank) slabs[{slab.dataset, slab.slab}] = slab.found;
  }
  if (slabs.empty()) return false;
  const std::vector<io::DatasetInfo> datasets = file.datasets();
  std::map<std::int64_t, compute::NonFinite> by_dataset;
  for (const auto& [place, slab] : slabs) {
    const auto& [dataset, number] = place;
    by_dataset[dataset].add(slab,
                            number * datasets[static_cast<std::size_t>(dataset)].slab_elements());
  }
  std::string text =
      fmt::format("{}: weights are not finite in {}; requests that meet them end with an error\n",
                  file.path(), name_of(dtype));
  std::size_t named = 0;
  for (const auto& [dataset, values] : by_dataset) {
    if (named++ == most_named) break;
    const io::DatasetInfo& info = datasets[static_cast<std::size_t>(dataset)];
    text += fmt::format("  {}: {}\n", info.path, compute::text_of(values, info.shape));
  }
  if (by_dataset.size() > most_named) {
    text += fmt::format("  and {} more tensors\n", by_dataset.size() - most_named);
  }
  fmt::print(stderr, "{}", text);
  return std::any_of(by_dataset.begin(), by_dataset.end(), [](const auto& entry) {
    return entry.second.num_nan + entry.second.num_infinite > 0;
  });
}

}  // namespace atl
