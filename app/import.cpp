#include "app/import.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "app/model.hpp"
#include "compute/error.hpp"
#include "io/convert.hpp"
#include "io/json_depth.hpp"
#include "io/model_file.hpp"
#include "io/safetensors.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

/// How one architecture's folder differs from a model file.
struct Architecture {
  const char* name;
  Json qk_norm;                        ///< as in ModelConfig
  const char* expert_size_key;         ///< the width of an expert
  std::optional<bool> norm_topk_prob;  ///< set: always so, whatever the configuration says
  bool can_slide;                      ///< attention follows `sliding_window`
  const char* moe_block;               ///< name of the MoE block in a layer
  const char* gate;                    ///< names of an expert's matrices
  const char* up;
  const char* down;
  Json defaults;  ///< of keys that config.json may leave out
};

/// Sizes that shape tensors have no defaults here: a folder that leaves them out is incomplete.
const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> list = {
      {"Qwen3MoeForCausalLM",
       true,
       "moe_intermediate_size",
       std::nullopt,
       true,
       "mlp",
       "gate_proj",
       "up_proj",
       "down_proj",
       {{"num_key_value_heads", 4},
        {"num_experts_per_tok", 8},
        {"norm_topk_prob", false},
        {"hidden_act", "silu"},
        {"rms_norm_eps", 1e-6},
        {"rope_theta", 10000.0},
        {"max_position_embeddings", 32768},
        {"use_sliding_window", false},
        {"sliding_window", 4096},
        {"decoder_sparse_step", 1}}},
      {"MixtralForCausalLM",
       false,
       "intermediate_size",
       true,
       true,
       "block_sparse_moe",
       "w1",
       "w3",
       "w2",
       {{"num_key_value_heads", 8},
        {"num_experts_per_tok", 2},
        {"hidden_act", "silu"},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 1e6},
        {"max_position_embeddings", 131072},
        {"eos_token_id", 2}}},
      {"OlmoeForCausalLM",
       "whole_row",
       "intermediate_size",
       std::nullopt,
       false,
       "mlp",
       "gate_proj",
       "up_proj",
       "down_proj",
       {{"num_experts_per_tok", 8},
        {"norm_topk_prob", false},
        {"hidden_act", "silu"},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 10000.0},
        {"max_position_embeddings", 4096},
        {"eos_token_id", 50279}}},
  };
  return list;
}

bool has(const Json& json, const char* key) {
  return json.contains(key) && !json[key].is_null();
}

const Architecture& architecture_of(const Json& hf) {
  require(has(hf, "architectures") && hf["architectures"].is_array() &&
              hf["architectures"].size() == 1 && hf["architectures"][0].is_string(),
          "key \"architectures\" is {}, must be a list of one name",
          hf.contains("architectures") ? hf["architectures"].dump() : "missing");
  const auto name = hf["architectures"][0].get<std::string>();
  std::vector<std::string> names;
  for (const Architecture& candidate : architectures()) {
    if (name == candidate.name) return candidate;
    names.emplace_back(candidate.name);
  }
  fail("architecture {} is not supported; supported are {}", name, fmt::join(names, ", "));
}

/// Newer folders keep rope_theta in `rope_parameters`; a scaling of type "default" is none.
void normalise_rope(Json& config) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!has(config, key) || !config[key].is_object()) continue;
    const Json rope = config[key];
    // The kind of scaling says most, so it is named rather than one of its parameters.
    for (const char* type : {"rope_type", "type"}) {
      require(!has(rope, type) || rope[type] == "default",
              "key \"{}\" has \"{}\": {}, which is not supported; only default is", key, type,
              rope.value(type, Json()).dump());
    }
    for (const auto& [name, value] : rope.items()) {
      if (name == "rope_theta") {
        require(!has(config, "rope_theta") || config["rope_theta"] == value,
                "\"rope_theta\" and {}'s \"rope_theta\" differ; keep one of them", key);
        config["rope_theta"] = value;
        continue;
      }
      const bool harmless = name == "rope_type" || name == "type" || value.is_null() ||
                            (name == "partial_rotary_factor" && value == 1);
      require(harmless, "key \"{}\" has \"{}\": {}, which is not supported; only rope_theta is",
              key, name, value.dump());
    }
    config.erase(key);
  }
}

/// The layers that have a dense MLP by `mlp_only_layers` and `decoder_sparse_step`.
void normalise_dense_layers(Json& config) {
  const Json step = config.value("decoder_sparse_step", Json(1));
  const Json layers = config.value("num_hidden_layers", Json(0));
  config.erase("decoder_sparse_step");
  if (step.is_null() || step == 1) return;
  require(step.is_number_unsigned() && step.get<std::uint64_t>() > 0,
          "key \"decoder_sparse_step\" is {}, must be an integer from 1", step.dump());
  if (!layers.is_number_unsigned() || layers.get<std::uint64_t>() > 4096) return;  // refused later
  std::set<std::uint64_t> dense;
  for (std::uint64_t layer = 0; layer < layers.get<std::uint64_t>(); ++layer) {
    if ((layer + 1) % step.get<std::uint64_t>() != 0) dense.insert(layer);
  }
  if (has(config, "mlp_only_layers") && config["mlp_only_layers"].is_array()) {
    for (const Json& layer : config["mlp_only_layers"]) {
      if (layer.is_number_unsigned()) dense.insert(layer.get<std::uint64_t>());
    }
  }
  config["mlp_only_layers"] = dense;
}

/// Drops stop ids that the model cannot produce: the defaults of `transformers` belong to large
/// vocabularies and stay in the configurations of small ones.
void normalise_stop_ids(Json& config) {
  if (!has(config, "eos_token_id") || !has(config, "vocab_size")) return;
  const Json& ids = config["eos_token_id"];
  Json kept = Json::array();
  for (const Json& id : ids.is_array() ? ids : Json::array({ids})) {
    const bool possible = !id.is_number_integer() || (id >= 0 && id < config["vocab_size"]);
    if (possible) kept.push_back(id);
  }
  config["eos_token_id"] = kept;
}

Json convert_config(Json config, const Architecture& architecture) {
  normalise_rope(config);
  for (const auto& [key, value] : architecture.defaults.items()) {
    if (!config.contains(key) || (config[key].is_null() && key != "sliding_window" &&
                                  key != "eos_token_id" && key != "num_key_value_heads")) {
      config[key] = value;
    }
  }
  normalise_dense_layers(config);
  normalise_stop_ids(config);
  config["qk_norm"] = architecture.qk_norm;
  if (std::string(architecture.expert_size_key) != "moe_intermediate_size") {
    require(has(config, architecture.expert_size_key),
            "the configuration has no key \"{}\"; add it", architecture.expert_size_key);
    config["moe_intermediate_size"] = config[architecture.expert_size_key];
    config.erase(architecture.expert_size_key);
    config.erase("mlp_only_layers");  // these architectures have no dense layers
  }
  if (architecture.norm_topk_prob) config["norm_topk_prob"] = *architecture.norm_topk_prob;
  if (!architecture.can_slide) config.erase("sliding_window");
  config.erase("first_k_dense_replace");
  if (config["hidden_act"] == "swish") config["hidden_act"] = "silu";
  require(config["hidden_act"] == "silu", "key \"hidden_act\" is {}; of {} only silu is supported",
          config["hidden_act"].dump(), architecture.name);
  return config;
}

/// A model file's tensor in a Hugging Face folder: one name, or one for each expert.
std::string hf_name_of(const std::string& path, const Architecture& architecture,
                       std::optional<std::int64_t> expert) {
  std::string name = path.substr(1);
  std::replace(name.begin(), name.end(), '/', '.');
  const auto swap = [&](const std::string& from, const std::string& to) {
    const std::size_t place = name.find(from);
    if (place != std::string::npos) name.replace(place, from.size(), to);
  };
  if (expert) {
    swap(".gate_proj.", fmt::format(".{}.{}.", *expert, architecture.gate));
    swap(".up_proj.", fmt::format(".{}.{}.", *expert, architecture.up));
    swap(".down_proj.", fmt::format(".{}.{}.", *expert, architecture.down));
  }
  if (expert || name.ends_with(".mlp.gate.weight")) {
    swap(".mlp.", fmt::format(".{}.", architecture.moe_block));
  }
  return name;
}

/// Buffers that old checkpoints carry and every implementation computes anew.
bool is_ignored(const std::string& name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

struct Source {
  std::string name;
  const io::StoredTensor* tensor = nullptr;
};

/// One model file tensor and where its slabs come from.
struct Import {
  TensorInfo target;
  std::vector<Source> slabs;
};

class Importer {
 public:
  Importer(const io::Safetensors& stored, const ModelConfig& config,
           const Architecture& architecture)
      : stored_(stored), config_(config), architecture_(architecture) {}

  /// Finds every tensor before the first is written, so that a missing one costs no time.
  std::vector<Import> plan() {
    std::vector<Import> imports;
    for (TensorInfo& target : tensors_of(config_)) {
      Import import{std::move(target), {}};
      const std::int64_t num_slabs = import.target.per_expert ? import.target.shape[0] : 1;
      for (std::int64_t slab = 0; slab < num_slabs; ++slab) {
        import.slabs.push_back(find(import.target, slab));
      }
      imports.push_back(std::move(import));
    }
    check_rest();
    return imports;
  }

 private:
  Source find(const TensorInfo& target, std::int64_t slab) {
    const std::string name =
        hf_name_of(target.path, architecture_,
                   target.per_expert ? std::optional<std::int64_t>(slab) : std::nullopt);
    const std::vector<std::int64_t> shape(target.shape.begin() + (target.per_expert ? 1 : 0),
                                          target.shape.end());
    const auto found = stored_.tensors().find(name);
    if (found == stored_.tensors().end()) refuse_fused_experts();
    require(found != stored_.tensors().end(), "tensor {} [{}] is missing; the folder is incomplete",
            name, fmt::join(shape, ", "));
    require(
        found->second.shape == shape,
        "tensor {} in {} has shape [{}], config.json makes it [{}]; they do not belong together",
        name, stored_.file_of(found->second), fmt::join(found->second.shape, ", "),
        fmt::join(shape, ", "));
    used_.insert(name);
    return {name, &found->second};
  }

  /// `transformers` 5 can save the experts of a layer as one tensor, for all architectures alike.
  void refuse_fused_experts() const {
    for (const auto& [name, tensor] : stored_.tensors()) {
      require(
          !name.ends_with(".mlp.experts.gate_up_proj"),
          "tensor {} in {} holds all experts of a layer, which is not supported; save the model "
          "with one tensor per expert (in transformers: save_original_format=True)",
          name, stored_.file_of(tensor));
    }
  }

  void check_rest() const {
    for (const auto& [name, tensor] : stored_.tensors()) {
      if (used_.contains(name) || is_ignored(name)) continue;
      if (name == "lm_head.weight" && config_.tie_word_embeddings) {
        check_tied(tensor);
        continue;
      }
      fail(
          "tensor {} in {} has no place in a {} of this configuration; such models are not "
          "supported",
          name, stored_.file_of(tensor), architecture_.name);
    }
  }

  /// A tied head may be stored all the same, if it is the embedding.
  void check_tied(const io::StoredTensor& head) const {
    const io::StoredTensor& embedding = stored_.tensors().at("model.embed_tokens.weight");
    std::vector<std::byte> a(static_cast<std::size_t>(head.bytes));
    std::vector<std::byte> b(static_cast<std::size_t>(embedding.bytes));
    stored_.read(head, a);
    stored_.read(embedding, b);
    require(head.shape == embedding.shape && head.dtype == embedding.dtype && a == b,
            "tensor lm_head.weight differs from model.embed_tokens.weight although "
            "tie_word_embeddings is true; set it to false");
  }

  const io::Safetensors& stored_;
  const ModelConfig& config_;
  const Architecture& architecture_;
  std::set<std::string> used_;
};

void write_all(const io::Safetensors& stored, const ModelConfig& config,
               const std::vector<Import>& imports, const std::string& output) {
  std::vector<io::ModelFileWriter::Dataset> datasets;
  for (const Import& i : imports) {
    datasets.push_back({i.target.path, i.target.shape, i.target.per_expert});
  }
  io::ModelFileWriter writer(output, config.to_json(), config.dtype, datasets, io::single_process);
  std::vector<std::byte> bytes;
  std::vector<std::byte> converted;
  for (std::size_t d = 0; d < imports.size(); ++d) {
    for (std::size_t slab = 0; slab < imports[d].slabs.size(); ++slab) {
      const Source& source = imports[d].slabs[slab];
      bytes.resize(static_cast<std::size_t>(source.tensor->bytes));
      stored.read(*source.tensor, bytes);
      if (source.tensor->dtype != config.dtype) {
        converted.resize(bytes.size() / size_of(source.tensor->dtype) * size_of(config.dtype));
        try {
          io::convert(bytes, source.tensor->dtype, converted, config.dtype);
        } catch (const Error& error) {
          fail("tensor {} in {}: {}", source.name, stored.file_of(*source.tensor), error.what());
        }
        std::swap(bytes, converted);
      }
      writer.write_slab(d, static_cast<std::int64_t>(slab), bytes);
    }
  }
  writer.close();
}

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  require(stream.good() || stream.eof(), "cannot read {}; check the folder and its permissions",
          path.string());
  return text;
}

Json parse_object(const std::string& text) {
  io::require_shallow_json(text, "not usable");
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(json.is_object(), "not a JSON object");
  return json;
}

/// Runs `work`, putting the file at fault before what it says is wrong.
template <class Work>
auto naming(const fs::path& path, Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    fail("cannot import {}: {}", path.string(), error.what());
  }
}

/// `transformers` generates until an id of generation_config.json, where there is one.
void take_generation_stop_ids(const fs::path& folder, Json& hf) {
  const fs::path path = folder / "generation_config.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return;
  const Json generation = naming(path, [&] { return parse_object(read_text(path)); });
  if (has(generation, "eos_token_id")) hf["eos_token_id"] = generation["eos_token_id"];
}

}  // namespace

std::string config_from_hf(const std::string& hf_json, const std::string& stored_dtype) {
  Json hf = parse_object(hf_json);
  Json config = convert_config(hf, architecture_of(hf));
  if (!has(config, "torch_dtype") && !has(config, "dtype")) config["torch_dtype"] = stored_dtype;
  return ModelConfig::from_json(config.dump()).to_json();
}

void import_hf(const std::string& folder, const std::string& output) {
  const fs::path base(folder);
  const fs::path config_path = base / "config.json";
  std::error_code ignored;
  require(fs::is_directory(base, ignored),
          "cannot import {}: no such folder (working directory {}); give a Hugging Face folder",
          folder, fs::current_path(ignored).string());
  require(fs::exists(config_path, ignored),
          "cannot import {}: it has no config.json; give a Hugging Face folder", folder);
  Json hf = naming(config_path, [&] { return parse_object(read_text(config_path)); });
  take_generation_stop_ids(base, hf);
  // An unsupported architecture is the likeliest mistake: say so before reading headers.
  const Architecture& architecture =
      naming(config_path, [&] { return std::cref(architecture_of(hf)); });
  const io::Safetensors stored = io::Safetensors::open_folder(folder);
  const auto embedding = stored.tensors().find("model.embed_tokens.weight");
  const DType stored_dtype =
      embedding == stored.tensors().end() ? DType::float32 : embedding->second.dtype;
  const ModelConfig config = naming(config_path, [&] {
    return ModelConfig::from_json(config_from_hf(hf.dump(), std::string(name_of(stored_dtype))));
  });
  const std::vector<Import> imports =
      naming(base, [&] { return Importer(stored, config, architecture).plan(); });
  write_all(stored, config, imports, output);
}

}  // namespace atl
