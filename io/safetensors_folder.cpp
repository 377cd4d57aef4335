// Which files of a folder are the model.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"
#include "io/safetensors.hpp"

namespace atl::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

/// A path that a file of the folder gives for another: in the folder, or in one below it.
fs::path inside(const fs::path& base, const Json& name, const std::string& what) {
  const fs::path path =
      name.is_string() ? fs::path(name.get<std::string>()).lexically_normal() : fs::path();
  require(!path.empty() && path != "." && path.is_relative() && *path.begin() != ".." &&
              path.has_filename(),
          "{} is {}, must be the name of a file in the same folder or below", what, shown(name));
  return base / path;
}

/// The file of each tensor by an index.
std::map<std::string, std::string> read_index(const fs::path& path, const fs::path& base,
                                              const Warn& warn) {
  const std::string what = fmt::format("cannot read {}", path.string());
  std::vector<std::string> repeated;
  const Json json = read_json_object(path.string(), what, &repeated);
  require(
      json.contains("weight_map") && json["weight_map"].is_object() && !json["weight_map"].empty(),
      "{}: it has no \"weight_map\" of tensor names to files", what);
  if (!repeated.empty()) {
    warn(fmt::format("{}: {} comes twice; the last one counts", path.string(), repeated.front()));
  }
  std::map<std::string, std::string> file_of;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    file_of[name] =
        inside(base, shard, fmt::format("{}: the file of tensor {}", what, name)).string();
  }
  return file_of;
}

Safetensors open_index(const std::map<std::string, std::string>& file_of, const std::string& index,
                       const Warn& warn) {
  std::set<std::string> shards;
  for (const auto& [name, shard] : file_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    require(is_file(shard),
            "cannot read {}: {} names it, but it is missing; add the file, or remove the index if "
            "it is of an earlier save",
            shard, index);
  }
  Safetensors result({shards.begin(), shards.end()}, file_of);
  if (!result.doubled().empty()) {
    const std::string& name = *result.doubled().begin();
    const StoredTensor& tensor = result.tensors().at(name);
    warn(
        fmt::format("{} tensors are in several of the files that {} names; of {} the one in {} was "
                    "taken{}",
                    result.doubled().size(), index, name, result.file_of(tensor),
                    tensor.off_index ? "" : ", as it says"));
  }
  return result;
}

/// The files of a folder that has neither of the two names; sorted.
std::vector<std::string> unnamed_files(const fs::path& base, const Warn& warn) {
  std::vector<std::string> files;
  std::vector<std::string> others;  // other layouts of a model, adapters, other formats
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(base, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".") || !is_file(entry.path())) continue;
    const std::string kind = entry.path().extension().string();
    if (kind == ".safetensors") {
      const bool other = name.starts_with("consolidated") || name.starts_with("adapter_");
      (other ? others : files).push_back(other ? name : entry.path().string());
    } else if ((kind == ".bin" && name != "training_args.bin") || kind == ".pt" || kind == ".pth" ||
               kind == ".gguf") {
      others.push_back(name);
    }
  }
  std::sort(files.begin(), files.end());
  std::sort(others.begin(), others.end());
  if (files.empty() && !others.empty()) {
    fail("cannot read {}: it holds {}{}, but no model.safetensors; {}", base.string(),
         others.front(),
         others.size() == 1 ? "" : fmt::format(" and {} more such files", others.size() - 1),
         others.front().starts_with("adapter_")
             ? "merge the adapter into its base model and save that"
             : "load it in transformers and write a folder with save_pretrained");
  }
  require(!files.empty(),
          "cannot read {}: it holds no *.safetensors file; give a Hugging Face folder",
          base.string());
  std::erase_if(others, [](const std::string& name) { return !name.ends_with(".safetensors"); });
  if (!others.empty()) {
    warn(fmt::format("{} was not read: it is not a part of the {} files that were", others.front(),
                     files.size()));
  }
  return files;
}

/// Parts of a sharded model, by their names.
std::int64_t num_shards_beside(const fs::path& base) {
  std::error_code ignored;
  return std::count_if(fs::directory_iterator(base, ignored), fs::directory_iterator(),
                       [](const fs::directory_entry& entry) {
                         const std::string name = entry.path().filename().string();
                         return name.starts_with("model-") && name.ends_with(".safetensors");
                       });
}

/// `model.safetensors` where an index is there too: of the same save, or of an earlier one. Empty
/// where the index has it among its files.
std::optional<Safetensors> open_single(const fs::path& single, const fs::path& index,
                                       const Warn& warn) {
  try {
    const std::map<std::string, std::string> file_of =
        read_index(index, single.parent_path(), warn);
    const bool named = std::any_of(file_of.begin(), file_of.end(), [&](const auto& entry) {
      return fs::path(entry.second) == single;
    });
    if (named) return std::nullopt;
    const bool all_there = std::all_of(file_of.begin(), file_of.end(),
                                       [](const auto& entry) { return is_file(entry.second); });
    warn(fmt::format("took {}, as transformers does, and not the files that {} names; {}",
                     single.string(), index.string(),
                     all_there ? "remove one of the two" : "they are not all there"));
  } catch (const Error& error) {
    warn(fmt::format("took {}, as transformers does; {}", single.string(), error.what()));
  }
  return Safetensors({single.string()});
}

}  // namespace

Safetensors Safetensors::open_folder(const std::string& folder, const Warn& warn,
                                     const std::string& weights) {
  const Warn tell = [&](const std::string& line) {
    if (warn) warn(line);
  };
  const fs::path base(folder);
  const fs::path single = base / single_name;
  fs::path index = base / index_name;
  if (!weights.empty()) {
    const fs::path named = inside(base, weights, "key \"transformers_weights\"");
    require(is_file(named), "cannot read {}: the configuration names it, but it is missing",
            named.string());
    if (named.extension() != ".json") return Safetensors({named.string()});
    index = named;
  } else if (is_file(single)) {
    std::optional<Safetensors> alone;
    if (is_file(index)) {
      alone = open_single(single, index, tell);
    } else {
      const std::int64_t others = num_shards_beside(base);
      if (others > 0) {
        tell(
            fmt::format("took {}, as transformers does, and not the {} model-*.safetensors beside "
                        "it; remove what is not the model",
                        single.string(), others));
      }
      alone = Safetensors({single.string()});
    }
    if (alone) return *std::move(alone);
  } else if (!is_file(index)) {
    return Safetensors(unnamed_files(base, tell));
  }
  return open_index(read_index(index, base, tell), index.string(), tell);
}

}  // namespace atl::io
