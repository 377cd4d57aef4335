// Which files of a folder are the model.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
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

/// A part of a sharded model by its name: `model-00002-of-00007.safetensors`.
struct Shard {
  std::string before;  ///< of the name, what stands before the number
  std::string after;   ///< and what stands after the count
  std::string number;  ///< as written
  std::string count;
};

std::optional<Shard> shard_of(const std::string& name) {
  constexpr std::string_view digits = "0123456789";
  constexpr std::size_t most_digits = 9;  // fits every integer type
  const std::size_t of = name.rfind("-of-");
  if (of == std::string::npos) return std::nullopt;
  const std::size_t end = name.find_first_not_of(digits, of + 4);
  const std::size_t dash = name.find_last_not_of(digits, of == 0 ? 0 : of - 1);
  if (end == std::string::npos || dash == std::string::npos || dash >= of) return std::nullopt;
  const Shard shard{name.substr(0, dash + 1), name.substr(end),
                    name.substr(dash + 1, of - dash - 1), name.substr(of + 4, end - of - 4)};
  const bool counted = !shard.number.empty() && !shard.count.empty() &&
                       shard.number.size() <= most_digits && shard.count.size() <= most_digits;
  return counted ? std::optional(shard) : std::nullopt;
}

/// Without an index nothing but their names says which shards belong together. Throws Error when
/// they are of several saves, or one is missing.
void check_shards(const fs::path& base, const std::vector<std::string>& files) {
  std::optional<Shard> first;
  std::string first_name;
  std::set<std::int64_t> numbers;
  for (const std::string& file : files) {
    const std::string name = fs::path(file).filename().string();
    const std::optional<Shard> shard = shard_of(name);
    if (!shard) continue;
    if (!first) {
      first = shard;
      first_name = name;
    }
    require(
        shard->before == first->before && shard->after == first->after &&
            std::stoll(shard->count) == std::stoll(first->count),
        "cannot read {}: {} and {} are of different saves, and there is no {} to choose; remove "
        "the files that are not of the model",
        base.string(), first_name, name, index_name);
    numbers.insert(std::stoll(shard->number));
  }
  if (!first) return;
  const auto name_of = [&](std::int64_t number) {
    return fmt::format("{}{:0{}}-of-{}{}", first->before, number, first->number.size(),
                       first->count, first->after);
  };
  const std::int64_t lowest = *numbers.begin() == 0 ? 0 : 1;
  const std::int64_t end = lowest + std::stoll(first->count);
  require(*numbers.rbegin() < end,
          "cannot read {}: {} has a number above its count; remove it, or add the index that names "
          "the files of the model",
          base.string(), name_of(*numbers.rbegin()));
  std::int64_t missing = lowest;
  while (numbers.contains(missing)) ++missing;
  require(missing == end,
          "cannot read {}: {} is missing ({} of {} shards are there); add what is missing",
          base.string(), name_of(missing), numbers.size(), end - lowest);
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
    refuse_dangling_link(shard);
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
    const std::string kind = entry.path().extension().string();
    const bool other = name.starts_with("consolidated") || name.starts_with("adapter_");
    if (name.starts_with(".")) continue;
    if (kind == ".safetensors" && !other) refuse_dangling_link(entry.path().string());
    if (!is_file(entry.path())) continue;
    if (kind == ".safetensors") {
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
  check_shards(base, files);
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

void refuse_dangling_link(const std::string& path) {
  std::error_code ignored;
  struct stat status {};
  if (!fs::is_symlink(path, ignored) || stat(path.c_str(), &status) == 0) return;
  const char* reason = std::strerror(errno);
  fail(
      "cannot read {}: it is a symbolic link to {}, which cannot be read ({}); download the file "
      "again, or remove the link",
      path, fs::read_symlink(path, ignored).string(), reason);
}

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
    refuse_dangling_link(named.string());
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
  } else {
    // A file of this name would be the model: no other reading may take its place.
    refuse_dangling_link(single.string());
    refuse_dangling_link(index.string());
    if (!is_file(index)) return Safetensors(unnamed_files(base, tell));
  }
  return open_index(read_index(index, base, tell), index.string(), tell);
}

}  // namespace atl::io
