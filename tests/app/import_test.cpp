#include "app/model/import.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "app/model/checked_config.hpp"
#include "app/model/inspect.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "io/safetensors.hpp"
#include "tests/app/import_folder.hpp"

namespace atl {
namespace {

fs::path sample_model() {
  return fs::path(ATOLL_SOURCE_DIR) / "tests" / "data" / "sample-model";
}

class Import : public ImportTest {};

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
  Folder windowed = mixtral();
  windowed.config["sliding_window"] = 4096;
  EXPECT_EQ(import(windowed).shape.attention(0).window, 4096);
  windowed.config["sliding_window"] = 131072;  // as long as the context
  EXPECT_TRUE(import(windowed).shape.attentions.empty());
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

TEST_F(Import, NamesWhatIsNotSupported) {
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", {"LlamaForCausalLM"}),
                       "LlamaForCausalLM is not supported; supported are Qwen3MoeForCausalLM"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", nullptr), "architectures"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", {1, 2}), "architectures"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "architectures", Json::array()), "model_type"));
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
  EXPECT_TRUE(contains(refusal_with(qwen(), "num_experts_per_tok", 4), "num_experts_per_tok"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "num_hidden_layers", -1), "num_hidden_layers"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "decoder_sparse_step", 0), "decoder_sparse_step"));
  Folder folder = mixtral();
  folder.config.erase("intermediate_size");
  EXPECT_TRUE(contains(refusal(folder), "intermediate_size"));
  write_folder(qwen());
  write("config.json", "{");
  EXPECT_TRUE(contains(error_of([&] { import_hf((folder_ / "hf").string(), output()); }),
                       "config.json: not valid JSON: line 1, column 2"));
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
