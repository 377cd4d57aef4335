#pragma once
// Small Hugging Face folders of every architecture, written and imported.

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "app/model/checked_config.hpp"
#include "app/model/import.hpp"
#include "app/model/inspect.hpp"
#include "app/model/model_config.hpp"
#include "app/model/tensors.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "tests/fixtures.hpp"

namespace atl {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Shape = std::vector<std::int64_t>;

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A small Hugging Face folder: configuration and names with shapes.
struct Folder {
  Json config;
  std::map<std::string, Shape> tensors;
  std::map<std::string, std::vector<float>> values;  ///< of those that have no value_of()
  std::map<std::string, DType> types;                ///< of those that are stored in another type
  std::map<std::string, std::string> other_types;    ///< of tensors of one byte an element
};

inline void add_attention(Folder& folder, int layer, bool norms, Shape q_norm, Shape k_norm) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  folder.tensors[prefix + "input_layernorm.weight"] = {8};
  folder.tensors[prefix + "post_attention_layernorm.weight"] = {8};
  folder.tensors[prefix + "self_attn.q_proj.weight"] = {8, 8};
  folder.tensors[prefix + "self_attn.k_proj.weight"] = {4, 8};
  folder.tensors[prefix + "self_attn.v_proj.weight"] = {4, 8};
  folder.tensors[prefix + "self_attn.o_proj.weight"] = {8, 8};
  if (norms) {
    folder.tensors[prefix + "self_attn.q_norm.weight"] = std::move(q_norm);
    folder.tensors[prefix + "self_attn.k_norm.weight"] = std::move(k_norm);
  }
}

inline void add_experts(Folder& folder, int layer, const std::string& block, const char* gate,
                        const char* up, const char* down) {
  const std::string prefix = "model.layers." + std::to_string(layer) + "." + block + ".";
  folder.tensors[prefix + "gate.weight"] = {3, 8};
  for (int expert = 0; expert < 3; ++expert) {
    const std::string name = prefix + "experts." + std::to_string(expert) + ".";
    folder.tensors[name + gate + ".weight"] = {6, 8};
    folder.tensors[name + up + ".weight"] = {6, 8};
    folder.tensors[name + down + ".weight"] = {8, 6};
  }
}

inline Folder common(const char* architecture) {
  Folder folder;
  folder.config = {
      {"architectures", {architecture}}, {"vocab_size", 16},         {"hidden_size", 8},
      {"num_attention_heads", 4},        {"num_key_value_heads", 2}, {"num_experts_per_tok", 2},
      {"torch_dtype", "float32"}};
  folder.tensors = {{"model.embed_tokens.weight", {16, 8}},
                    {"model.norm.weight", {8}},
                    {"lm_head.weight", {16, 8}}};
  return folder;
}

inline Folder qwen() {
  Folder folder = common("Qwen3MoeForCausalLM");
  folder.config.update({{"num_hidden_layers", 2},
                        {"mlp_only_layers", {0}},
                        {"head_dim", 2},
                        {"num_experts", 3},
                        {"intermediate_size", 10},
                        {"moe_intermediate_size", 6},
                        {"norm_topk_prob", true}});
  for (int layer : {0, 1}) add_attention(folder, layer, true, {2}, {2});
  folder.tensors["model.layers.0.mlp.gate_proj.weight"] = {10, 8};
  folder.tensors["model.layers.0.mlp.up_proj.weight"] = {10, 8};
  folder.tensors["model.layers.0.mlp.down_proj.weight"] = {8, 10};
  add_experts(folder, 1, "mlp", "gate_proj", "up_proj", "down_proj");
  return folder;
}

inline Folder mixtral() {
  Folder folder = common("MixtralForCausalLM");
  folder.config.update(
      {{"num_hidden_layers", 1}, {"num_local_experts", 3}, {"intermediate_size", 6}});
  add_attention(folder, 0, false, {}, {});
  add_experts(folder, 0, "block_sparse_moe", "w1", "w3", "w2");
  return folder;
}

inline Folder olmoe() {
  Folder folder = common("OlmoeForCausalLM");
  folder.config.update({{"num_hidden_layers", 1}, {"num_experts", 3}, {"intermediate_size", 6}});
  add_attention(folder, 0, true, {8}, {4});
  add_experts(folder, 0, "mlp", "gate_proj", "up_proj", "down_proj");
  return folder;
}

/// A value that tells tensor and element.
inline float value_of(const std::string& name, std::size_t element) {
  return static_cast<float>(std::hash<std::string>{}(name) % 1000) +
         static_cast<float>(element) / 256.0F;
}

/// Writes folders and imports them.
class ImportTest : public FolderTest {
 protected:
  void SetUp() override { fs::create_directory(folder_ / "hf"); }

  std::string output() const { return (folder_ / "model.h5").string(); }
  void write(const char* name, const std::string& text) const {
    std::ofstream(folder_ / "hf" / name, std::ios::binary) << text;
  }

  void write_folder(const Folder& folder, DType stored = DType::float32) const {
    const std::map<DType, std::string> names = {
        {DType::float32, "F32"}, {DType::float16, "F16"}, {DType::bfloat16, "BF16"}};
    Json header = Json::object();
    std::string data;
    for (const auto& [name, shape] : folder.tensors) {
      std::size_t elements = 1;
      for (std::int64_t extent : shape) elements *= static_cast<std::size_t>(extent);
      std::vector<float> values;
      for (std::size_t i = 0; i < elements; ++i) values.push_back(value_of(name, i));
      if (folder.values.contains(name)) values = folder.values.at(name);
      const DType type = folder.types.contains(name) ? folder.types.at(name) : stored;
      std::vector<std::byte> bytes(elements * size_of(type));
      compute::convert(std::as_bytes(std::span(values)), DType::float32, bytes, type);
      std::string type_name = names.at(type);
      if (folder.other_types.contains(name)) {
        type_name = folder.other_types.at(name);
        bytes.resize(elements);
      }
      header[name] = {{"dtype", type_name},
                      {"shape", shape},
                      {"data_offsets", {data.size(), data.size() + bytes.size()}}};
      data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
    const std::string text = header.dump();
    const std::uint64_t length = text.size();
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    write("model.safetensors", file + text + data);
    write("config.json", folder.config.dump());
  }

  ModelConfig import(const Folder& folder, DType stored = DType::float32) {
    write_folder(folder, stored);
    return import_written();
  }

  /// What was said of it is in `said_`.
  ModelConfig import_written() {
    said_.clear();
    import_hf((folder_ / "hf").string(), output(),
              [&](const std::string& line) { said_ += line + "\n"; });
    io::ModelFileReader reader(output());
    return checked_config(reader);
  }

  /// The message with which the folder is refused; no file may be left.
  std::string refusal(const Folder& folder) {
    write_folder(folder);
    return refusal_of_written();
  }

  std::string refusal_of_written() {
    fs::remove(output());
    const std::string message = error_of([&] { import_written(); });
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1)
        << message;
    return message;
  }

  std::string refusal_with(Folder folder, const char* key, const Json& value) {
    folder.config[key] = value;
    return refusal(folder);
  }

  /// Whether slab `slab` of the imported dataset holds the values of the folder's tensor `name`.
  void expect_values(const std::string& path, std::int64_t slab, const std::string& name) const {
    io::ModelFileReader reader(output());
    const io::DatasetInfo info = reader.dataset(path);
    std::vector<std::byte> bytes(static_cast<std::size_t>(info.slab_bytes()));
    reader.read_slab(info, slab, bytes);
    std::vector<float> values;
    for (std::int64_t i = 0; i < info.slab_elements(); ++i) {
      values.push_back(value_of(name, static_cast<std::size_t>(i)));
    }
    std::vector<std::byte> expected(bytes.size());
    compute::convert(std::as_bytes(std::span(values)), DType::float32, expected, info.dtype);
    EXPECT_EQ(bytes, expected) << path << " slab " << slab;
  }

  /// The bytes of the model file that a folder becomes.
  std::string model_of(const Folder& folder) {
    import(folder);
    std::ifstream stream(output(), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }

  std::string said_;
};

}  // namespace atl
