#include "app/model/import.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "app/model/architectures.hpp"
#include "app/model/families.hpp"
#include "app/model/import_places.hpp"
#include "app/model/import_plan.hpp"
#include "app/model/model_config.hpp"
#include "app/model/quantised.hpp"
#include "app/model/tensors.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/folder_tokenizer.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"
#include "io/model_file.hpp"
#include "io/safetensors.hpp"

namespace atl {
namespace {

namespace fs = std::filesystem;
using compute::Weight;
using Json = nlohmann::json;
using Shape = std::vector<std::int64_t>;

constexpr const char* head_name = "lm_head.weight";
/// A shape as it is where dimensions of one do not count.
Shape without_ones(Shape shape) {
  std::erase(shape, 1);
  return shape;
}

constexpr const char* embedding_name = "model.embed_tokens.weight";

/// Buffers that old checkpoints carry and every implementation computes anew.
bool is_ignored(const std::string& name) {
  return name.find(".rotary_emb.") != std::string::npos;
}

/// Whether a tensor that no place asks for would belong to what the model computes: to one of its
/// layers, the embedding, the last norm or the head.
bool is_of_model(const std::string& name, const io::StoredTensor& tensor, int num_layers) {
  std::string_view rest = name;
  if (rest.starts_with("model.")) rest.remove_prefix(6);
  for (const char* module : {"embed_tokens.", "norm.", "lm_head."}) {
    if (rest.starts_with(module)) return true;
  }
  if (!rest.starts_with("layers.")) return false;
  int layer = -1;
  std::from_chars(rest.data() + 7, rest.data() + rest.size(), layer);
  // Integers are counters and masks: no weight of a module.
  const bool number = tensor.dtype_name.find('F') != std::string::npos;
  return layer < num_layers && number;
}

/// Whether two spans of `dtype` hold the same values: 0 is -0, and NaN is NaN.
bool same_values(std::span<const std::byte> a, std::span<const std::byte> b, DType dtype) {
  if (std::ranges::equal(a, b)) return true;
  std::vector<float> values(a.size() / size_of(dtype));
  std::vector<float> others(b.size() / size_of(dtype));
  compute::to_float(a.data(), dtype, values);
  compute::to_float(b.data(), dtype, others);
  return std::ranges::equal(values, others, [](float value, float other) {
    return value == other || (std::isnan(value) && std::isnan(other));
  });
}

class Importer {
 public:
  Importer(const io::Safetensors& stored, const ModelConfig& config, const FolderForm& form,
           const Quantisation& quantisation, const io::Warn& warn)
      : stored_(stored), config_(config), form_(form), quantisation_(quantisation), warn_(warn) {}

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
    tell(fused_,
         "taken apart: {2} ({0} {1} all experts of a layer, as transformers 5 saves them with "
         "save_original_format=False)",
         "tensor holds", "tensors hold");
    tell(off_index_, "{} {} not where the index says; taken from where they are: {}", "tensor is",
         "tensors are");
    return imports;
  }

 private:
  Source find(const TensorInfo& target, std::int64_t slab) {
    std::vector<Place> places = form_.places_of(target, slab);
    for (const Place& place : places) {
      const Source source = coded_at(place, target);
      if (source.coded.code != Code::none) return source;
    }
    for (const bool off_index : {false, true}) {  // what the index gives comes before what is left
      for (const Place& place : places) {
        const auto found = stored_.tensors().find(place.name);
        if (found != stored_.tensors().end() && found->second.off_index == off_index) {
          if (place.num_parts > 1 && &place != &places.front()) fused_.insert(place.name);
          return checked(place, found->second);
        }
      }
    }
    const auto head = stored_.tensors().find(head_name);
    if (target.weight == Weight::embedding && config_.tie_word_embeddings &&
        head != stored_.tensors().end()) {
      warn_(fmt::format("took {} as {} too: tie_word_embeddings is true, and there is no other",
                        head_name, embedding_name));
      places[0].name = head_name;
      return checked(places[0], head->second);
    }
    const std::string indexed = stored_.indexed_file(places[0].name);
    fail("tensor {} [{}] is missing; the folder is incomplete{}", places[0].name,
         fmt::join(places[0].shape, ", "),
         indexed.empty() ? "" : fmt::format(" (by its index it should be in {})", indexed));
  }

  /// A matrix in few bits at `place`, if there is one.
  Source coded_at(const Place& place, const TensorInfo& target) {
    Source source{place.name, {}, place.shape, 0, place.picking, {}};
    const std::size_t dims = place.shape.size();
    if (target.shape.size() < 2 || target.shape.back() == 1 || dims < 2) return source;
    // What is turned in plain numbers lies the other way round in few bits.
    const bool turned = place.picking.turned;
    const std::int64_t rows = place.shape[turned ? dims - 1 : dims - 2];
    const std::int64_t cols = place.shape[turned ? dims - 2 : dims - 1];
    std::vector<std::string> names;
    source.coded = find_coded(stored_, quantisation_, place.name, rows, cols, place.part,
                              place.num_parts, names);
    source.name = source.coded.name;
    source.part = source.coded.numbers;
    if (turned) source.picking.turned = false;
    source.picking.cols = cols;
    used_.insert(names.begin(), names.end());
    return source;
  }

  /// The part of a stored tensor at `place`, if type and shape are right.
  Source checked(const Place& place, const io::StoredTensor& tensor) {
    require(tensor.dtype.has_value(),
            "tensor {} in {}: its dtype is {}; BF16, F16 and F32 are supported", place.name,
            stored_.file_of(tensor), tensor.dtype_name);
    require(
        without_ones(tensor.shape) == without_ones(place.shape),
        "tensor {} in {} has shape [{}], config.json makes it [{}]; they do not belong together",
        place.name, stored_.file_of(tensor), fmt::join(tensor.shape, ", "),
        fmt::join(place.shape, ", "));
    used_.insert(place.name);
    if (tensor.off_index) off_index_.insert(place.name);
    Source source{place.name, tensor, tensor.shape, 0, place.picking, {}};
    source.part.bytes = tensor.bytes / place.num_parts;
    source.part.offset = tensor.offset + place.part * source.part.bytes;
    source.element =
        place.part * source.part.bytes / static_cast<std::int64_t>(size_of(*tensor.dtype));
    return source;
  }

  /// What nobody asked for: other models' tensors and later layers are left out, as `transformers`
  /// does; a tensor that would change what the model computes is not.
  void check_rest() {
    std::set<std::string> left_out;
    for (const auto& [name, tensor] : stored_.tensors()) {
      if (used_.contains(name) || is_ignored(name) || tensor.off_index) continue;
      if (name == head_name && config_.tie_word_embeddings) {
        check_tied(tensor);
        continue;
      }
      const bool not_needed =
          !form_.left_out.empty() && name.find(form_.left_out) != std::string::npos;
      require(not_needed || !is_of_model(name, tensor, config_.shape.num_layers),
              "tensor {} in {} has no place in a {} of this configuration; such models are not "
              "supported",
              name, stored_.file_of(tensor), form_.name);
      left_out.insert(name);
    }
    tell(left_out, "{} {} no place in this model and left out: {}", "tensor has", "tensors have");
  }

  /// A tied head may be stored all the same, if the model file would hold the embedding twice.
  void check_tied(const io::StoredTensor& head) const {
    const auto place =
        std::find_if(stored_.tensors().begin(), stored_.tensors().end(), [&](const auto& tensor) {
          return used_.contains(tensor.first) &&
                 (tensor.first == embedding_name || tensor.first == "embed_tokens.weight");
        });
    const io::StoredTensor& embedding = place->second;
    require(head.dtype.has_value(),
            "tensor {} in {}: its dtype is {}; BF16, F16 and F32 are supported", head_name,
            stored_.file_of(head), head.dtype_name);
    bool equal = head.shape == embedding.shape;
    constexpr std::int64_t at_once = 1 << 22;  // elements
    const std::int64_t elements = head.bytes / static_cast<std::int64_t>(size_of(*head.dtype));
    std::array<ReadBuffers, 2> buffers;
    const auto ignore = [](std::span<const std::byte>, DType) {};
    for (std::int64_t at = 0; equal && at < elements; at += at_once) {
      const auto values = [&](const std::string& name, const io::StoredTensor& tensor,
                              std::size_t buffer) {
        const auto size = static_cast<std::int64_t>(size_of(*tensor.dtype));
        Source source{name, tensor, tensor.shape, 0, {}, {}};
        source.part.offset += at * size;
        source.part.bytes = std::min(at_once, elements - at) * size;
        return read_as(stored_, source, config_.dtype, buffers[buffer], ignore);
      };
      equal = same_values(values(head_name, head, 0), values(place->first, embedding, 1),
                          config_.dtype);
    }
    require(equal,
            "tensor {} differs from {} although tie_word_embeddings is true; set it to false in "
            "config.json to use both",
            head_name, place->first);
  }

  /// One line about tensors, if there are any: how many, what of them, and the first names.
  void tell(const std::set<std::string>& names, fmt::string_view format, const char* one,
            const char* several) const {
    if (names.empty()) return;
    const std::vector<std::string> all(names.begin(), names.end());
    const std::size_t shown = std::min(all.size(), max_tensors_named);
    std::string list = fmt::format("{}", fmt::join(all.begin(), all.begin() + shown, ", "));
    if (shown < all.size()) list += fmt::format(" and {} more", all.size() - shown);
    warn_(fmt::format(fmt::runtime(format), all.size(), all.size() == 1 ? one : several, list));
  }

  const io::Safetensors& stored_;
  const ModelConfig& config_;
  const FolderForm& form_;
  const Quantisation& quantisation_;
  const io::Warn& warn_;
  std::set<std::string> used_;
  std::set<std::string> fused_;      // hold the experts of a layer
  std::set<std::string> off_index_;  // found elsewhere than the index says
};

/// Runs `work`, putting the file at fault before what it says is wrong.
template <class Work>
auto naming(const fs::path& path, Work&& work) {
  try {
    return work();
  } catch (const Error& error) {
    fail("cannot import {}: {}", path.string(), error.what());
  }
}

Json read_config(const fs::path& path, const std::string& what, const io::Warn& warn) {
  std::vector<std::string> repeated;
  Json json = io::read_json_object(path.string(), what, &repeated);
  for (const std::string& key : repeated) {
    warn(fmt::format("{}: key {} comes twice; the last one counts", path.string(), io::shown(key)));
  }
  return json;
}

/// `transformers` generates until an id of generation_config.json, where there is one that it can
/// read.
void take_generation_stop_ids(const fs::path& folder, Json& hf, const io::Warn& warn) {
  const fs::path path = folder / "generation_config.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored) && !fs::is_symlink(path, ignored)) return;
  try {
    const Json generation = read_config(path, fmt::format("ignored {}", path.string()), warn);
    if (!generation.contains("eos_token_id") || generation["eos_token_id"].is_null()) return;
    const Json& ids = generation["eos_token_id"];
    const Json list = ids.is_array() ? ids : Json::array({ids});
    constexpr double exact = 9007199254740992.0;  // up to here a double has every integer
    const auto is_id = [](const Json& id) {
      const double number = id.is_number() ? id.get<double>() : 0.5;
      return id.is_number_integer() || (std::trunc(number) == number && std::abs(number) <= exact);
    };
    require(std::all_of(list.begin(), list.end(), is_id),
            "ignored {}: its \"eos_token_id\" is {}, must be an integer or a list of them",
            path.string(), io::shown(ids));
    hf["eos_token_id"] = ids;
  } catch (const Error& error) {
    warn(error.what());
  }
}

/// The folder's tokenizer for the model file; nothing where it has none. What is not supported is
/// said, and leaves a model that takes tokens.
std::vector<io::Attachment> tokenizer_of(const std::string& folder, const ModelConfig& config,
                                         const io::Warn& warn) {
  const std::optional<io::TokenizerSpec> spec = io::tokenizer_of_folder(folder);
  if (!spec) return {};
  if (!spec->unsupported.empty()) {
    warn(fmt::format(
        "the tokenizer is not supported, and requests need \"tokens\" (jobs/tokenize.py): {}",
        spec->unsupported));
  } else if (spec->num_ids() > config.shape.vocab) {
    warn(fmt::format("the tokenizer has {} ids, the model {}: prompts that need others are refused",
                     spec->num_ids(), config.shape.vocab));
  }
  return io::to_attachments(*spec);
}

DType stored_dtype_of(const io::Safetensors& stored) {
  for (const char* name :
       {embedding_name, "embed_tokens.weight", head_name,
        "language_model.model.embed_tokens.weight", "model.language_model.embed_tokens.weight"}) {
    const auto found = stored.tensors().find(name);
    if (found != stored.tensors().end() && found->second.dtype) return *found->second.dtype;
  }
  return DType::float32;  // what is missing is named later
}

}  // namespace

std::string config_from_hf(const std::string& hf_json, const std::string& stored_dtype) {
  const auto ignore = [](const std::string&) {};
  Json hf = io::parse_json_object(hf_json, "the configuration");
  const Family* family = family_of(hf);
  take_quantisation(hf);
  if (family != nullptr) {
    return describe_family(*family, hf, stored_dtype, ignore).config.to_json();
  }
  const Json config = convert_config(hf, architecture_of(hf, ignore), stored_dtype, ignore);
  return ModelConfig::from_json(config.dump()).to_json();
}

void warn_of_import(const std::string& line) {
  fmt::print(stderr, "import: {}\n", line);
}

ImportPlan plan_import(const std::string& folder, KeptWeights weights, const io::Warn& warn) {
  const fs::path base(folder);
  const fs::path config_path = base / "config.json";
  std::error_code ignored;
  require(fs::is_directory(base, ignored),
          "cannot import {}: no such folder (working directory {}); give a Hugging Face folder",
          folder, fs::current_path(ignored).string());
  io::refuse_dangling_link(config_path.string());
  require(fs::exists(config_path, ignored),
          "cannot import {}: it has no config.json; give a Hugging Face folder", folder);
  Json hf = read_config(config_path, fmt::format("cannot import {}", config_path.string()), warn);
  take_generation_stop_ids(base, hf, warn);
  // An unsupported architecture is the likeliest mistake: say so before reading headers.
  const Family* family = family_of(hf);
  const Architecture* architecture =
      family != nullptr ? nullptr : naming(config_path, [&] { return &architecture_of(hf, warn); });
  Quantisation quantisation;
  naming(config_path, [&] { return quantisation = take_quantisation(hf); });
  const Json file = hf.value("transformers_weights", Json());
  io::Safetensors stored = io::Safetensors::open_folder(
      folder, warn, file.is_string() ? file.get<std::string>() : std::string());
  const std::string stored_dtype(name_of(stored_dtype_of(stored)));
  FamilyModel model;
  naming(config_path, [&] {
    if (family != nullptr) {
      model = describe_family(*family, hf, stored_dtype, warn);
    } else {
      model.config =
          ModelConfig::from_json(convert_config(hf, *architecture, stored_dtype, warn).dump());
    }
    return 0;
  });
  const FolderForm form = family != nullptr ? form_of(*family, model) : form_of(*architecture);
  std::vector<Import> imports =
      naming(base, [&] { return Importer(stored, model.config, form, quantisation, warn).plan(); });
  if (weights == KeptWeights::coded) keep_codes(imports, model.config, warn);
  std::vector<io::Attachment> tokenizer = tokenizer_of(folder, model.config, warn);
  return {std::move(stored), std::move(model.config), std::move(imports), std::move(tokenizer)};
}

}  // namespace atl
