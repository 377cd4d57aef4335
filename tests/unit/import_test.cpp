#include "app/import.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "app/inspect.hpp"
#include "app/model.hpp"
#include "compute/error.hpp"
#include "io/convert.hpp"
#include "io/model_file.hpp"
#include "io/safetensors.hpp"
#include "tests/fixtures.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Shape = std::vector<std::int64_t>;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

fs::path sample_model() {
  return fs::path(ATOLL_SOURCE_DIR) / "tests" / "data" / "sample-model";
}

/// A small Hugging Face folder: configuration and names with shapes.
struct Folder {
  Json config;
  std::map<std::string, Shape> tensors;
};

void add_attention(Folder& folder, int layer, bool norms, Shape q_norm, Shape k_norm) {
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

void add_experts(Folder& folder, int layer, const std::string& block, const char* gate,
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

Folder common(const char* architecture) {
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

Folder qwen() {
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

Folder mixtral() {
  Folder folder = common("MixtralForCausalLM");
  folder.config.update(
      {{"num_hidden_layers", 1}, {"num_local_experts", 3}, {"intermediate_size", 6}});
  add_attention(folder, 0, false, {}, {});
  add_experts(folder, 0, "block_sparse_moe", "w1", "w3", "w2");
  return folder;
}

Folder olmoe() {
  Folder folder = common("OlmoeForCausalLM");
  folder.config.update({{"num_hidden_layers", 1}, {"num_experts", 3}, {"intermediate_size", 6}});
  add_attention(folder, 0, true, {8}, {4});
  add_experts(folder, 0, "mlp", "gate_proj", "up_proj", "down_proj");
  return folder;
}

/// A value that tells tensor and element.
float value_of(const std::string& name, std::size_t element) {
  return static_cast<float>(std::hash<std::string>{}(name) % 1000) +
         static_cast<float>(element) / 256.0F;
}

class Import : public FolderTest {
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
      std::vector<std::byte> bytes(elements * size_of(stored));
      io::convert(std::as_bytes(std::span(values)), DType::float32, bytes, stored);
      header[name] = {{"dtype", names.at(stored)},
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

  ModelConfig import(const Folder& folder, DType stored = DType::float32) const {
    write_folder(folder, stored);
    import_hf((folder_ / "hf").string(), output());
    io::ModelFileReader reader(output());
    return checked_config(reader);
  }

  /// The message with which the folder is refused; no file may be left.
  std::string refusal(const Folder& folder) const {
    fs::remove(output());
    const std::string message = error_of([&] { import(folder); });
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1)
        << message;
    return message;
  }

  std::string refusal_with(Folder folder, const char* key, const Json& value) const {
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
    io::convert(std::as_bytes(std::span(values)), DType::float32, expected, info.dtype);
    EXPECT_EQ(bytes, expected) << path << " slab " << slab;
  }
};

TEST_F(Import, Qwen3Moe) {
  const ModelConfig config = import(qwen());
  EXPECT_EQ(config.shape.qk_norm, QkNorm::per_head);
  EXPECT_EQ(config.shape.layer_is_dense, (std::vector<bool>{true, false}));
  EXPECT_TRUE(config.shape.norm_topk_prob);
  EXPECT_EQ(config.shape.rms_eps, 1e-6F);
  EXPECT_EQ(config.shape.rope_theta, 10000.0);
  EXPECT_EQ(config.shape.max_positions, 32768);
  EXPECT_EQ(config.shape.moe_intermediate, 6);
  EXPECT_TRUE(config.stop_token_ids.empty());
  expect_values("/model/layers/0/mlp/up_proj/weight", 0, "model.layers.0.mlp.up_proj.weight");
  expect_values("/model/layers/1/mlp/gate/weight", 0, "model.layers.1.mlp.gate.weight");
  expect_values("/model/layers/1/mlp/experts/gate_proj/weight", 2,
                "model.layers.1.mlp.experts.2.gate_proj.weight");
  expect_values("/model/layers/1/self_attn/k_norm/weight", 0,
                "model.layers.1.self_attn.k_norm.weight");
  expect_values("/lm_head/weight", 0, "lm_head.weight");
}

TEST_F(Import, Mixtral) {
  Folder folder = mixtral();
  folder.config["sliding_window"] = nullptr;
  folder.config["norm_topk_prob"] = false;  // Mixtral has no such key: always true
  folder.config["head_dim"] = nullptr;
  const ModelConfig config = import(folder);
  EXPECT_EQ(config.shape.qk_norm, QkNorm::none);
  EXPECT_TRUE(config.shape.norm_topk_prob);
  EXPECT_EQ(config.shape.head_dim, 2);
  EXPECT_EQ(config.shape.rms_eps, 1e-5F);
  EXPECT_EQ(config.shape.rope_theta, 1e6);
  EXPECT_EQ(config.shape.moe_intermediate, 6);
  EXPECT_EQ(config.stop_token_ids, (std::vector<std::int32_t>{2}));
  expect_values("/model/layers/0/mlp/gate/weight", 0,
                "model.layers.0.block_sparse_moe.gate.weight");
  for (int expert = 0; expert < 3; ++expert) {
    const std::string prefix =
        "model.layers.0.block_sparse_moe.experts." + std::to_string(expert) + ".";
    expect_values("/model/layers/0/mlp/experts/gate_proj/weight", expert, prefix + "w1.weight");
    expect_values("/model/layers/0/mlp/experts/up_proj/weight", expert, prefix + "w3.weight");
    expect_values("/model/layers/0/mlp/experts/down_proj/weight", expert, prefix + "w2.weight");
  }
  EXPECT_TRUE(contains(refusal_with(mixtral(), "sliding_window", 4096), "sliding_window"));
  Folder wide = mixtral();
  wide.config["sliding_window"] = 131072;
  EXPECT_NO_THROW(import(wide));
}

TEST_F(Import, Olmoe) {
  Folder folder = olmoe();
  folder.config["clip_qkv"] = nullptr;
  const ModelConfig config = import(folder);
  EXPECT_EQ(config.shape.qk_norm, QkNorm::whole_row);
  EXPECT_FALSE(config.shape.norm_topk_prob);
  EXPECT_EQ(config.shape.rms_eps, 1e-5F);
  EXPECT_EQ(config.shape.max_positions, 4096);
  EXPECT_TRUE(config.stop_token_ids.empty()) << "50279 is outside this vocabulary";
  expect_values("/model/layers/0/self_attn/q_norm/weight", 0,
                "model.layers.0.self_attn.q_norm.weight");
  EXPECT_TRUE(contains(refusal_with(olmoe(), "clip_qkv", 8.0), "clip_qkv"));
}

TEST_F(Import, UnderstandsNewerConfigurations) {
  Folder folder = qwen();
  folder.config.erase("torch_dtype");
  folder.config["dtype"] = "bfloat16";
  folder.config["rope_parameters"] = {{"rope_theta", 5e5}, {"rope_type", "default"}};
  folder.config["decoder_sparse_step"] = 2;
  folder.config["mlp_only_layers"] = Json::array();
  folder.config["eos_token_id"] = 3;
  write("generation_config.json", R"({"eos_token_id":[3,5]})");
  const ModelConfig config = import(folder);
  EXPECT_EQ(config.dtype, DType::bfloat16);
  EXPECT_EQ(config.shape.rope_theta, 5e5);
  EXPECT_EQ(config.shape.layer_is_dense, (std::vector<bool>{true, false}));
  EXPECT_EQ(config.stop_token_ids, (std::vector<std::int32_t>{3, 5}));
  folder.config["rope_parameters"]["rope_type"] = "yarn";
  EXPECT_TRUE(contains(refusal(folder), "yarn"));
}

TEST_F(Import, ConvertsTypes) {
  for (DType target : {DType::bfloat16, DType::float16, DType::float32}) {
    for (DType stored : {DType::bfloat16, DType::float16, DType::float32}) {
      Folder folder = mixtral();
      folder.config["torch_dtype"] = std::string(name_of(target));
      EXPECT_EQ(import(folder, stored).dtype, target);
      if (stored == DType::float32) {
        expect_values("/model/embed_tokens/weight", 0, "model.embed_tokens.weight");
      }
    }
  }
  Folder folder = mixtral();
  folder.config.erase("torch_dtype");
  EXPECT_EQ(import(folder, DType::float16).dtype, DType::float16) << "as stored";
}

TEST_F(Import, TiedEmbeddingsNeedNoHead) {
  Folder folder = qwen();
  folder.config["tie_word_embeddings"] = true;
  EXPECT_TRUE(contains(refusal(folder), "tie_word_embeddings"));
  folder.tensors.erase("lm_head.weight");
  EXPECT_TRUE(import(folder).tie_word_embeddings);
  folder.config["tie_word_embeddings"] = false;
  EXPECT_TRUE(contains(refusal(folder), "tensor lm_head.weight [16, 8] is missing"));
}

TEST_F(Import, NamesTensorsThatDoNotFit) {
  Folder folder = qwen();
  folder.tensors.erase("model.layers.1.mlp.experts.1.up_proj.weight");
  EXPECT_TRUE(contains(refusal(folder),
                       "tensor model.layers.1.mlp.experts.1.up_proj.weight [6, 8] is missing"));
  folder = qwen();
  folder.tensors["model.layers.1.self_attn.v_proj.weight"] = {8, 4};
  const std::string message = refusal(folder);
  EXPECT_TRUE(contains(message, "v_proj.weight in ") && contains(message, "[8, 4]") &&
              contains(message, "[4, 8]"))
      << message;
  folder = qwen();
  folder.tensors["model.layers.1.self_attn.q_proj.bias"] = {8};
  EXPECT_TRUE(contains(refusal(folder), "q_proj.bias"));
  folder = qwen();
  folder.tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = {4};
  EXPECT_NO_THROW(import(folder));
}

TEST_F(Import, NamesFusedExperts) {
  for (Folder folder : {qwen(), mixtral(), olmoe()}) {
    const int layer = folder.config["num_hidden_layers"].get<int>() - 1;
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.";
    std::erase_if(folder.tensors, [](const auto& tensor) {
      return contains(tensor.first, ".experts.") || contains(tensor.first, "block_sparse_moe");
    });
    folder.tensors[prefix + "gate.weight"] = {3, 8};
    folder.tensors[prefix + "experts.gate_up_proj"] = {3, 12, 8};
    folder.tensors[prefix + "experts.down_proj"] = {3, 8, 6};
    const std::string message = refusal(folder);
    EXPECT_TRUE(contains(message, prefix + "experts.gate_up_proj") &&
                contains(message, "one tensor per expert"))
        << message;
  }
}

TEST_F(Import, NamesWhatIsNotSupported) {
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", {"LlamaForCausalLM"}),
                       "LlamaForCausalLM is not supported; supported are Qwen3MoeForCausalLM"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", nullptr), "architectures"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", {1, 2}), "architectures"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "quantization_config", {{"bits", 4}}), "quantization"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "attention_bias", true), "attention_bias"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "rope_scaling", {{"type", "linear"}}), "linear"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "rope_parameters",
                                    {{"factor", 4.0}, {"rope_theta", 1e4}, {"rope_type", "yarn"}}),
                       R"("rope_type": "yarn")"))
      << "the kind of scaling, not the first of its parameters";
  EXPECT_TRUE(contains(refusal_with(qwen(), "rope_parameters",
                                    {{"partial_rotary_factor", 0.5}, {"rope_type", "default"}}),
                       "partial_rotary_factor"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "hidden_act", "gelu"), "gelu"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "use_sliding_window", true), "sliding_window"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "num_experts_per_tok", 4), "num_experts_per_tok"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "num_hidden_layers", -1), "num_hidden_layers"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "decoder_sparse_step", 0), "decoder_sparse_step"));
  Folder folder = mixtral();
  folder.config.erase("intermediate_size");
  EXPECT_TRUE(contains(refusal(folder), "intermediate_size"));
  write_folder(qwen());
  write("config.json", "{");
  EXPECT_TRUE(contains(error_of([&] { import_hf((folder_ / "hf").string(), output()); }),
                       "config.json: not a JSON object"));
  fs::remove(folder_ / "hf" / "config.json");
  EXPECT_TRUE(contains(error_of([&] { import_hf((folder_ / "hf").string(), output()); }),
                       "no config.json"));
  EXPECT_TRUE(contains(error_of([&] { import_hf((folder_ / "none").string(), output()); }),
                       "no such folder"));
}

TEST_F(Import, TheSampleModelArrivesByteForByte) {
  import_hf(sample_model().string(), output());
  io::ModelFileReader reader(output());
  const ModelConfig config = checked_config(reader);
  EXPECT_EQ(config.shape.num_layers, 8);
  EXPECT_EQ(config.stop_token_ids, (std::vector<std::int32_t>{0}));
  const io::Safetensors stored = io::Safetensors::open_folder(sample_model().string());
  const auto expect_equal = [&](const std::string& path, std::int64_t slab,
                                const std::string& name) {
    const io::DatasetInfo info = reader.dataset(path);
    std::vector<std::byte> found(static_cast<std::size_t>(info.slab_bytes()));
    reader.read_slab(info, slab, found);
    const io::StoredTensor& tensor = stored.tensors().at(name);
    std::vector<std::byte> expected(static_cast<std::size_t>(tensor.bytes));
    stored.read(tensor, expected);
    EXPECT_EQ(found, expected) << name;
  };
  expect_equal("/model/embed_tokens/weight", 0, "model.embed_tokens.weight");
  expect_equal("/model/layers/7/mlp/experts/down_proj/weight", 15,
               "model.layers.7.mlp.experts.15.down_proj.weight");
  expect_equal("/model/layers/0/self_attn/q_norm/weight", 0,
               "model.layers.0.self_attn.q_norm.weight");
}

TEST_F(Import, InspectListsAndVerifies) {
  import(qwen());
  const std::string text = inspect_text(output(), true);
  EXPECT_TRUE(contains(text, "/model/layers/1/mlp/experts/down_proj/weight")) << text;
  EXPECT_TRUE(contains(text, "[3, 8, 6]"));
  EXPECT_TRUE(contains(text, "\"num_experts\": 3"));
  // 2 * 128 + 8 of vocabulary and norm; per layer 192 + 16 + 4 of attention; dense 240; MoE 24 +
  // 432.
  EXPECT_TRUE(contains(text, "1384 parameters, of which 432 in experts; 1240 active")) << text;
  EXPECT_TRUE(contains(text, "checksums: all good (5536 bytes read)"));

  // Damage two slabs: both are named, and nothing is said without verification.
  std::string bytes;
  {
    std::ifstream stream(output(), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(stream), {});
  }
  for (const char* name : {"model.layers.1.mlp.experts.1.up_proj.weight", "lm_head.weight"}) {
    const float first[2] = {value_of(name, 0), value_of(name, 1)};
    const std::size_t place =
        bytes.find(std::string(reinterpret_cast<const char*>(first), sizeof first));
    ASSERT_NE(place, std::string::npos);
    bytes[place] = static_cast<char>(bytes[place] ^ 1);
  }
  std::ofstream(output(), std::ios::binary) << bytes;
  const std::string message = error_of([&] { inspect_text(output(), true); });
  EXPECT_TRUE(contains(message, "2 of the slabs")) << message;
  EXPECT_TRUE(contains(message, "experts/up_proj/weight, slab 1")) << message;
  EXPECT_TRUE(contains(message, "/lm_head/weight")) << message;
  EXPECT_NO_THROW(inspect_text(output(), false));
}

TEST_F(Import, ConfigurationAndDatasetsMustAgree) {
  const ModelConfig config = import(mixtral());
  std::vector<io::ModelFileWriter::Dataset> datasets;
  for (const TensorInfo& t : tensors_of(config))
    datasets.push_back({t.path, t.shape, t.per_expert});
  const auto refusal_of = [&](std::vector<io::ModelFileWriter::Dataset> list, DType dtype,
                              const std::string& json) {
    io::ModelFileWriter writer(output(), json, dtype, list, io::single_process);
    for (std::size_t d = 0; d < list.size(); ++d) {
      const io::DatasetInfo info{list[d].path, list[d].shape, dtype, {}, list[d].per_expert};
      const std::vector<std::byte> zeros(static_cast<std::size_t>(info.slab_bytes()));
      for (std::int64_t s = 0; s < info.num_slabs(); ++s) writer.write_slab(d, s, zeros);
    }
    writer.close();
    return error_of([&] { inspect_text(output(), false); });
  };
  EXPECT_TRUE(contains(refusal_of(datasets, DType::float16, config.to_json()), "float16"));
  auto other = datasets;
  other[1].shape = {9};
  EXPECT_TRUE(contains(refusal_of(other, config.dtype, config.to_json()), "[9]"));
  other = datasets;
  other.pop_back();
  EXPECT_TRUE(contains(refusal_of(other, config.dtype, config.to_json()), "is missing"));
  other = datasets;
  other.push_back({"/extra/weight", {1}, false});
  EXPECT_TRUE(contains(refusal_of(other, config.dtype, config.to_json()), "/extra/weight"));
  EXPECT_TRUE(contains(refusal_of(datasets, config.dtype, "{}"), "hidden_size"));
}

}  // namespace
}  // namespace atl
