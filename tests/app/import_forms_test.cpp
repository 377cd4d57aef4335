// One model in the many forms that a Hugging Face folder can have: the same model file must come
// out, or a message.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/app/import_folder.hpp"

namespace atl {
namespace {

class ImportForms : public ImportTest {
 protected:
  /// The folder with other keys becomes the same model file; a null here takes the key away.
  void expect_same(const Folder& folder, const Json& keys, const std::string& said = {}) {
    const std::string expected = model_of(folder);
    Folder other = folder;
    for (const auto& [key, value] : keys.items()) {
      other.config[key] = value;
      if (value == "absent") other.config.erase(key);
    }
    EXPECT_TRUE(model_of(other) == expected) << keys;
    if (said.empty()) {
      EXPECT_EQ(said_, "") << keys;
    } else {
      EXPECT_TRUE(contains(said_, said)) << keys << ": " << said_;
    }
  }

  /// A folder whose experts have one tensor a layer.
  static Folder fused(Folder folder) {
    const int layer = folder.config["num_hidden_layers"].get<int>() - 1;
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.";
    const bool mixtral = folder.config["architectures"][0] == "MixtralForCausalLM";
    const std::string old =
        "model.layers." + std::to_string(layer) + (mixtral ? ".block_sparse_moe." : ".mlp.");
    std::map<std::string, std::vector<float>> values;
    const auto append = [&](const std::string& to, const std::string& from, std::size_t elements) {
      for (std::size_t i = 0; i < elements; ++i) values[to].push_back(value_of(from, i));
    };
    for (int expert = 0; expert < 3; ++expert) {
      const std::string name = old + "experts." + std::to_string(expert) + ".";
      append("experts.gate_up_proj", name + (mixtral ? "w1" : "gate_proj") + ".weight", 48);
      append("experts.gate_up_proj", name + (mixtral ? "w3" : "up_proj") + ".weight", 48);
      append("experts.down_proj", name + (mixtral ? "w2" : "down_proj") + ".weight", 48);
    }
    append("gate.weight", old + "gate.weight", 24);
    std::erase_if(folder.tensors,
                  [&](const auto& tensor) { return tensor.first.starts_with(old); });
    for (auto& [name, list] : values) folder.values[prefix + name] = std::move(list);
    folder.tensors[prefix + "gate.weight"] = {3, 8};
    folder.tensors[prefix + "experts.gate_up_proj"] = {3, 12, 8};
    folder.tensors[prefix + "experts.down_proj"] = {3, 8, 6};
    return folder;
  }
};

TEST_F(ImportForms, TheModelTypeSaysWhichArchitecture) {
  const std::vector<std::pair<Folder, std::string>> all = {
      {qwen(), "qwen3_moe"}, {mixtral(), "mixtral"}, {olmoe(), "olmoe"}};
  for (const auto& [folder, type] : all) {
    const std::string name = folder.config["architectures"][0];
    expect_same(folder, {{"model_type", type}});
    expect_same(folder, {{"model_type", nullptr}});
    expect_same(folder, {{"architectures", name}});
    for (const Json& names : {Json(nullptr), Json("absent"), Json::array(), Json(name),
                              Json({name, "Other"}), Json({"Other", name})}) {
      expect_same(folder, {{"model_type", type}, {"architectures", names}});
    }
    for (const char* other : {"LlamaForCausalLM", "Qwen3MoeModel", "MixtralForCausalLM2"}) {
      expect_same(folder, {{"model_type", type}, {"architectures", {other}}}, "read as a " + name);
    }
    expect_same(folder, {{"model_type", "llama"}}, "although \"model_type\" is \"llama\"");
    expect_same(folder, {{"architectures", {"Other", name}}});
  }
  // The two name different ones: the type decides, and the tensors must be its.
  expect_same(qwen(), {{"model_type", "qwen3_moe"}, {"architectures", {"OlmoeForCausalLM"}}},
              "although \"architectures\" has OlmoeForCausalLM");
  Folder folder = qwen();
  folder.config["model_type"] = "mixtral";
  EXPECT_FALSE(refusal(folder).empty());
  folder.config.erase("model_type");
  folder.config["architectures"] = {"OlmoeForCausalLM", "Qwen3MoeForCausalLM"};
  EXPECT_TRUE(contains(refusal(folder), "no \"model_type\" to decide"));
  folder.config["architectures"] = nullptr;
  EXPECT_TRUE(contains(refusal(folder), "supported are Qwen3MoeForCausalLM"));
  folder.config["model_type"] = "llama";
  EXPECT_TRUE(contains(refusal(folder), "\"llama\""));
}

TEST_F(ImportForms, TheNewerNameOfTheTypeCounts) {
  expect_same(qwen(), {{"dtype", "float32"}, {"torch_dtype", "bfloat16"}}, "took \"dtype\"");
  expect_same(qwen(), {{"dtype", "float32"}, {"torch_dtype", "torch.float32"}});
  expect_same(qwen(), {{"dtype", "float32"}, {"torch_dtype", "absent"}});
  expect_same(qwen(), {{"dtype", nullptr}});
  expect_same(qwen(), {{"dtype", "auto"}});
  expect_same(qwen(), {{"dtype", "auto"}, {"torch_dtype", nullptr}});
  expect_same(qwen(), {{"torch_dtype", "auto"}});
  expect_same(qwen(), {{"torch_dtype", "float"}});
  EXPECT_TRUE(contains(refusal_with(qwen(), "dtype", "float64"), "float64"));
  EXPECT_TRUE(contains(refusal_with(qwen(), "dtype", 16), "dtype"));
}

TEST_F(ImportForms, UnscaledPositions) {
  Folder folder = qwen();
  folder.config["rope_theta"] = 5e5;
  expect_same(folder, {{"rope_theta", 500000}});
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    for (const char* type : {"type", "rope_type"}) {
      for (const char* kind : {"linear", "dynamic", "default"}) {
        expect_same(folder, {{key, {{type, kind}, {"factor", 1.0}}}});
      }
      EXPECT_TRUE(contains(refusal_with(folder, key, {{type, "linear"}, {"factor", 2.0}}), key));
      EXPECT_TRUE(contains(refusal_with(folder, key, {{type, "yarn"}, {"factor", 1.0}}), "yarn"));
    }
    expect_same(folder, {{key, Json::object()}});
    expect_same(folder, {{key, {{"rope_theta", 5e5}}}, {"rope_theta", "absent"}});
    expect_same(folder, {{key, {{"rope_theta", 5e5}}}, {"rope_theta", nullptr}});
    expect_same(folder, {{key, {{"rope_theta", 5e5}}}, {"rope_theta", 1e4}}, "says 10000");
    expect_same(folder, {{key, {{"rope_theta", nullptr}, {"rope_type", "default"}}}});
    EXPECT_TRUE(contains(refusal_with(folder, key, "linear"), key));
  }
  expect_same(folder, {{"rope_scaling", {{"type", "default"}}},
                       {"rope_parameters", {{"rope_theta", 5e5}}}});
  folder.config["rope_scaling"] = {{"type", "default"}};
  EXPECT_TRUE(
      contains(refusal_with(folder, "rope_parameters", {{"rope_theta", 1e6}}), "keep one of them"));
  folder.config.erase("rope_theta");
  EXPECT_TRUE(
      contains(refusal_with(folder, "rope_parameters", {{"rope_theta", 1e6}}), "keep one of them"));
}

TEST_F(ImportForms, NumbersAsOtherProgramsWriteThem) {
  for (const Folder& folder : {qwen(), mixtral(), olmoe()}) {
    Json floats = Json::object();
    for (const auto& [key, value] : folder.config.items()) {
      if (value.is_number_integer()) floats[key] = value.get<double>();
      if (value.is_boolean()) floats[key] = value.get<bool>() ? 1 : 0;
    }
    floats["eos_token_id"] = {3.0, 151645.0};
    Folder with_ids = folder;
    with_ids.config["eos_token_id"] = 3;
    expect_same(with_ids, floats);
    EXPECT_TRUE(contains(refusal_with(folder, "hidden_size", 8.5), "hidden_size"));
  }
  expect_same(qwen(), {{"mlp_only_layers", {0.0}}, {"decoder_sparse_step", 1.0}});
  expect_same(qwen(), {{"mlp_only_layers", {0, 2, -1}}}, "left out layer 2");
  expect_same(qwen(), {{"mlp_only_layers", nullptr}, {"decoder_sparse_step", 2.0}});
}

TEST_F(ImportForms, NullIsNotGiven) {
  expect_same(qwen(), {{"rope_theta", nullptr},
                       {"rms_norm_eps", nullptr},
                       {"hidden_act", nullptr},
                       {"max_position_embeddings", nullptr},
                       {"decoder_sparse_step", nullptr},
                       {"use_sliding_window", nullptr},
                       {"tie_word_embeddings", nullptr},
                       {"attention_bias", nullptr},
                       {"rope_scaling", nullptr},
                       {"quantization_config", nullptr},
                       {"eos_token_id", nullptr}});
  expect_same(mixtral(), {{"sliding_window", nullptr}, {"rope_theta", nullptr}});
}

TEST_F(ImportForms, AWindowCountsWhereThereIsNoSwitch) {
  Folder folder = mixtral();
  folder.config["use_sliding_window"] = false;
  folder.config["sliding_window"] = 64;
  EXPECT_EQ(import(folder).shape.attention(0).window, 64);
  expect_same(qwen(), {{"use_sliding_window", false}, {"sliding_window", 64}});
}

TEST_F(ImportForms, FusedExperts) {
  for (const Folder& folder : {qwen(), mixtral(), olmoe()}) {
    const std::string expected = model_of(folder);
    Folder other = fused(folder);
    EXPECT_TRUE(model_of(other) == expected);
    EXPECT_TRUE(contains(said_, "experts.gate_up_proj (2 tensors hold all experts")) << said_;
    for (auto& [name, shape] : other.tensors) {
      if (name.ends_with("gate_up_proj")) std::swap(shape[1], shape[2]);
    }
    const std::string message = refusal(other);
    EXPECT_TRUE(contains(message, "gate_up_proj") && contains(message, "[3, 8, 12]")) << message;
  }
}

TEST_F(ImportForms, NamesOfTheBaseModel) {
  for (Folder folder : {qwen(), mixtral(), olmoe(), fused(qwen())}) {
    const std::string expected = model_of(folder);
    Folder other = folder;
    for (const auto& [name, shape] : folder.tensors) {
      if (!name.starts_with("model.")) continue;
      std::vector<float> values;
      std::int64_t elements = 1;
      for (const std::int64_t extent : shape) elements *= extent;
      for (std::int64_t i = 0; i < elements; ++i) {
        values.push_back(value_of(name, static_cast<std::size_t>(i)));
      }
      other.tensors.erase(name);
      other.tensors[name.substr(6)] = shape;
      other.values[name.substr(6)] = folder.values.contains(name) ? folder.values[name] : values;
    }
    EXPECT_TRUE(model_of(other) == expected);
  }
}

TEST_F(ImportForms, ATiedHeadThatIsStoredAllTheSame) {
  const std::string embedding = "model.embed_tokens.weight";
  const std::string head = "lm_head.weight";
  Folder folder = qwen();
  folder.config["tie_word_embeddings"] = true;
  folder.config["torch_dtype"] = "bfloat16";
  folder.tensors.erase(head);
  const std::string expected = model_of(folder);
  std::vector<float> values;
  for (std::size_t i = 0; i < 128; ++i) values.push_back(value_of(embedding, i));
  folder.tensors[head] = {16, 8};
  folder.values[head] = values;
  EXPECT_TRUE(model_of(folder) == expected);
  folder.types = {{embedding, DType::bfloat16}, {head, DType::float32}};
  EXPECT_TRUE(model_of(folder) == expected) << "equal once both are in the model's type";
  folder.values[head][127] += 64;
  std::string message = refusal(folder);
  EXPECT_TRUE(contains(message, "tie_word_embeddings") && contains(message, "config.json"));
  folder.values[head][127] -= 64;
  folder.tensors[head] = {8, 16};
  EXPECT_TRUE(contains(refusal(folder), "differs from"));
  // The head alone is both.
  folder.tensors[head] = {16, 8};
  folder.types.clear();
  folder.tensors.erase(embedding);
  EXPECT_TRUE(model_of(folder) == expected);
  EXPECT_TRUE(contains(said_, "took lm_head.weight as model.embed_tokens.weight too")) << said_;
}

TEST_F(ImportForms, TensorsThatNobodyAsksFor) {
  const std::string expected = model_of(qwen());
  Folder folder = qwen();
  folder.tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = {8};
  folder.other_types["model.layers.1.self_attn.rotary_emb.inv_freq"] = "F8_E4M3";
  EXPECT_TRUE(model_of(folder) == expected);
  EXPECT_EQ(said_, "");
  folder.tensors["model.layers.1.mlp.tokens_per_expert"] = {3};
  folder.other_types["model.layers.1.mlp.tokens_per_expert"] = "U8";
  folder.tensors["model.layers.2.input_layernorm.weight"] = {8};
  folder.tensors["v_head.summary.weight"] = {5};
  folder.other_types["v_head.summary.weight"] = "F8_E5M2";
  EXPECT_TRUE(model_of(folder) == expected);
  EXPECT_TRUE(contains(said_, "3 tensors have no place in this model and left out")) << said_;
  // What a layer of this model would compute with is not left out.
  for (const char* name :
       {"model.layers.1.self_attn.q_proj.bias", "model.layers.1.mlp.experts.3.up_proj.weight",
        "lm_head.bias", "model.norm.bias", "layers.1.mlp.gate.weight"}) {
    folder.tensors[name] = {8};
    EXPECT_TRUE(contains(refusal(folder), std::string("tensor ") + name));
    folder.tensors.erase(name);
  }
  folder = qwen();
  folder.other_types["model.norm.weight"] = "F8_E4M3";
  EXPECT_TRUE(contains(refusal(folder), "tensor model.norm.weight") &&
              contains(refusal(folder), "its dtype is F8_E4M3"));
}

TEST_F(ImportForms, NamesTensorsThatAreNotFinite) {
  Folder folder = qwen();
  const auto spoil = [&](const std::string& name, std::size_t elements, std::size_t at,
                         float value) {
    folder.values.try_emplace(name, elements, 1.0F).first->second[at] = value;
  };
  import(folder);
  EXPECT_EQ(said_, "");
  const float infinity = std::numeric_limits<float>::infinity();
  spoil("model.layers.1.mlp.experts.2.up_proj.weight", 48, 11, std::nanf(""));
  spoil("model.layers.1.mlp.experts.2.up_proj.weight", 48, 47, -infinity);
  spoil("model.norm.weight", 8, 7, infinity);
  for (const char* type : {"float32", "bfloat16", "float16"}) {
    folder.config["torch_dtype"] = type;
    import(folder);
    EXPECT_TRUE(contains(said_,
                         "tensor model.layers.1.mlp.experts.2.up_proj.weight has 2 values "
                         "that are not finite (1 NaN, 1 infinite), the first at [1, 3]"))
        << said_;
    EXPECT_TRUE(contains(said_,
                         "tensor model.norm.weight has 1 value that is not finite (1 "
                         "infinite), the first at [7]"))
        << said_;
  }
  // In a fused tensor the place is that of the whole.
  folder = fused(qwen());
  folder.values["model.layers.1.mlp.experts.gate_up_proj"][(2 * 12 + 6) * 8 + 5] = infinity;
  import(folder);
  EXPECT_TRUE(contains(said_,
                       "gate_up_proj has 1 value that is not finite (1 infinite), the first "
                       "at [2, 6, 5]"))
      << said_;
  // However many there are, a few lines.
  folder = qwen();
  for (const auto& [name, shape] : folder.tensors) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape) elements *= extent;
    spoil(name, static_cast<std::size_t>(elements), 0, infinity);
  }
  import(folder);
  EXPECT_EQ(std::count(said_.begin(), said_.end(), '\n'), 9) << said_;
  EXPECT_TRUE(contains(said_, std::to_string(folder.tensors.size() - 8) + " more tensors"))
      << said_;
}

TEST_F(ImportForms, AGenerationConfigThatCannotBeRead) {
  Folder folder = qwen();
  folder.config["eos_token_id"] = 3;
  const std::string expected = model_of(folder);
  for (const char* text : {"", "{", "[]", R"({"eos_token_id": "</s>"})"}) {
    write("generation_config.json", text);
    EXPECT_TRUE(model_of(folder) == expected) << text;
    EXPECT_TRUE(contains(said_, "ignored ") && contains(said_, "generation_config.json")) << said_;
  }
  write("generation_config.json", R"({"eos_token_id": null, "temperature": NaN})");
  EXPECT_TRUE(model_of(folder) == expected);
  EXPECT_EQ(said_, "");
}

TEST_F(ImportForms, JsonAsPythonReadsIt) {
  const std::string expected = model_of(qwen());
  std::string text = qwen().config.dump();
  write("config.json",
        "{\"initializer_range\": NaN, \"router_jitter_noise\": -Infinity, "
        "\"hidden_size\": 7, " +
            text.substr(1));
  import_written();
  EXPECT_EQ(said_, (folder_ / "hf" / "config.json").string() +
                       ": key \"hidden_size\" comes twice; the last one counts\n");
  EXPECT_TRUE(model_of(qwen()) == expected);
  write("config.json", "{\n\"hidden_size\": 8,\n" + text);
  EXPECT_TRUE(contains(refusal_of_written(),
                       "config.json: not valid JSON: line 3, column 1 (after "
                       "key \"hidden_size\")"));
  write("config.json", "{\"rope_theta\": Infinity, " + text.substr(1));
  EXPECT_TRUE(contains(refusal_of_written(), "\"rope_theta\" is \"Infinity\""));
}

}  // namespace
}  // namespace atl
