#include "io/safetensors.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "compute/error.hpp"
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"

namespace atl::io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::uint64_t max_header_bytes = 100'000'000;  // the format's own limit
constexpr std::int64_t max_index_bytes = 1 << 30;
constexpr const char* index_name = "model.safetensors.index.json";

/// A file open for reading, with its size.
class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail("cannot read {}: {}", path, std::strerror(errno));
    struct stat status {};
    const bool regular = fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
    if (!regular) {
      ::close(descriptor_);
      fail("cannot read {}: not a regular file", path);
    }
    size_ = status.st_size;
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::int64_t size() const { return size_; }

  void read(std::int64_t offset, std::span<std::byte> destination) const {
    while (!destination.empty()) {
      const ssize_t got = pread(descriptor_, destination.data(), destination.size(), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("cannot read {}: {}", path_, std::strerror(errno));
      require(got > 0, "cannot read {}: it ends at byte {}; copy it again", path_, offset);
      destination = destination.subspan(static_cast<std::size_t>(got));
      offset += got;
    }
  }

 private:
  std::string path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

/// Parses an object and refuses a key that comes twice at the top (the parser would keep the last).
Json parse_object(const std::string& text, const std::string& what) {
  require_shallow_json(text, what);
  std::set<std::string> names;
  std::string repeated;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::key && depth == 1 &&
        !names.insert(parsed.get<std::string>()).second) {
      repeated = parsed.get<std::string>();
    }
    return true;
  };
  Json json = Json::parse(text, watch, /*allow_exceptions=*/false);
  require(!json.is_discarded(), "{}: not valid JSON", what);
  require(json.is_object(), "{}: {} instead of an object", what, shown(json));
  require(repeated.empty(), "{}: \"{}\" comes twice", what, repeated);
  return json;
}

DType dtype_of(const std::string& name, const std::string& what) {
  if (name == "BF16") return DType::bfloat16;
  if (name == "F16") return DType::float16;
  if (name == "F32") return DType::float32;
  fail("{}: its dtype is {}; BF16, F16 and F32 are supported", what, name);
}

/// A non-negative integer up to `limit`.
std::int64_t count_of(const Json& value, std::int64_t limit, const std::string& what,
                      const char* key) {
  const bool fits =
      value.is_number_unsigned() && value.get<std::uint64_t>() <= static_cast<std::uint64_t>(limit);
  require(fits, "{}: {} has {}, must be an integer from 0 to {}", what, key, shown(value), limit);
  return value.get<std::int64_t>();
}

/// One entry of the header; offsets are counted from the end of the header, at `data_begin`.
StoredTensor parse_entry(const Json& entry, std::int64_t data_begin, std::int64_t file_bytes,
                         const std::string& what) {
  require(entry.is_object() && entry.contains("dtype") && entry["dtype"].is_string() &&
              entry.contains("shape") && entry["shape"].is_array() &&
              entry.contains("data_offsets") && entry["data_offsets"].is_array() &&
              entry["data_offsets"].size() == 2,
          "{}: its entry is {}, must have dtype, shape and two data_offsets", what, shown(entry));
  StoredTensor tensor;
  tensor.dtype = dtype_of(entry["dtype"].get<std::string>(), what);
  const std::int64_t data_bytes = file_bytes - data_begin;
  const std::int64_t begin = count_of(entry["data_offsets"][0], data_bytes, what, "data_offsets");
  const std::int64_t end = count_of(entry["data_offsets"][1], data_bytes, what, "data_offsets");
  require(begin <= end, "{}: data_offsets {} decrease", what, shown(entry["data_offsets"]));
  tensor.offset = data_begin + begin;
  tensor.bytes = end - begin;
  const auto element_bytes = static_cast<std::int64_t>(size_of(tensor.dtype));
  std::int64_t bytes = element_bytes;
  for (const Json& extent : entry["shape"]) {
    // Bounded by the file's size at each step, so that the product cannot overflow.
    const std::int64_t limit = bytes == 0 ? file_bytes : file_bytes / bytes;
    tensor.shape.push_back(count_of(extent, limit, what, "shape"));
    bytes *= tensor.shape.back();
  }
  require(bytes == tensor.bytes, "{}: shape {} of {} takes {} bytes, data_offsets {} span {}", what,
          shown(entry["shape"]), name_of(tensor.dtype), bytes, shown(entry["data_offsets"]),
          tensor.bytes);
  return tensor;
}

/// The format has every byte after the header belong to exactly one tensor.
void check_coverage(std::vector<std::pair<std::string, StoredTensor>>& tensors,
                    std::int64_t data_begin, std::int64_t file_bytes, const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second.offset, a.second.bytes) < std::pair(b.second.offset, b.second.bytes);
  });
  std::int64_t end = data_begin;
  for (const auto& [name, tensor] : tensors) {
    require(tensor.offset == end, "cannot read {}: tensor {} {} (it begins at {}, {} was expected)",
            path, name, tensor.offset < end ? "overlaps the one before" : "leaves a hole before it",
            tensor.offset - data_begin, end - data_begin);
    end += tensor.bytes;
  }
  require(end == file_bytes, "cannot read {}: its tensors end at byte {}, the file has {}", path,
          end, file_bytes);
}

std::string read_header(const File& file, const std::string& path) {
  require(file.size() >= 8, "cannot read {}: {} bytes are too few for a safetensors file", path,
          file.size());
  std::array<std::byte, 8> length{};
  file.read(0, length);
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 8; i-- > 0;) {
    header_bytes = (header_bytes << 8) | std::to_integer<std::uint64_t>(length[i]);
  }
  require(header_bytes <= max_header_bytes,
          "cannot read {}: header length {}, must be at most {}; not a safetensors file?", path,
          header_bytes, max_header_bytes);
  require(static_cast<std::int64_t>(header_bytes) <= file.size() - 8,
          "cannot read {}: a header of {} bytes does not fit the file of {}; copy it again", path,
          header_bytes, file.size());
  std::string header(header_bytes, '\0');
  file.read(8, std::as_writable_bytes(std::span(header)));
  return header;
}

std::map<std::string, std::string> read_index(const std::string& path) {
  const File file(path);
  require(file.size() <= max_index_bytes, "cannot read {}: {} bytes are too many", path,
          file.size());
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  const std::string what = fmt::format("cannot read {}", path);
  const Json json = parse_object(text, what);
  require(
      json.contains("weight_map") && json["weight_map"].is_object() && !json["weight_map"].empty(),
      "{}: it has no \"weight_map\" of tensor names to files", what);
  std::map<std::string, std::string> shard_of;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    require(shard.is_string(), "{}: the file of tensor {} is {}, must be a string", what, name,
            shown(shard));
    const auto file_name = shard.get<std::string>();
    require(!file_name.empty() && fs::path(file_name).filename() == file_name && file_name != "." &&
                file_name != "..",
            "{}: the file of tensor {} is {}, must be a file name in the same folder", what, name,
            shown(shard));
    shard_of[name] = file_name;
  }
  return shard_of;
}

}  // namespace

Safetensors::Safetensors(std::vector<std::string> files) : files_(std::move(files)) {
  for (std::size_t file = 0; file < files_.size(); ++file) add_file(file);
}

void Safetensors::add_file(std::size_t index) {
  const std::string& path = files_[index];
  const File file(path);
  const std::string header = read_header(file, path);
  const auto data_begin = static_cast<std::int64_t>(8 + header.size());
  const Json json = parse_object(header, fmt::format("cannot read {}: its header", path));
  std::vector<std::pair<std::string, StoredTensor>> found;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") continue;
    found.emplace_back(name, parse_entry(entry, data_begin, file.size(),
                                         fmt::format("cannot read {}: tensor {}", path, name)));
    found.back().second.file = index;
  }
  check_coverage(found, data_begin, file.size(), path);
  for (auto& [name, tensor] : found) {
    const auto [place, is_new] = tensors_.emplace(name, std::move(tensor));
    require(is_new, "tensor {} is in {} and again in {}; keep one of them", name,
            file_of(place->second), path);
  }
}

Safetensors Safetensors::open_folder(const std::string& folder) {
  const fs::path base(folder);
  const std::string index = (base / index_name).string();
  std::error_code ignored;
  std::vector<std::string> files;
  if (!fs::exists(index, ignored)) {
    if (fs::exists(base / "model.safetensors", ignored)) {
      files.push_back((base / "model.safetensors").string());
    } else {
      for (const auto& entry : fs::directory_iterator(base, ignored)) {
        if (entry.path().extension() == ".safetensors") files.push_back(entry.path().string());
      }
    }
    require(!files.empty(),
            "cannot read {}: it holds no *.safetensors file; give a Hugging Face folder", folder);
    std::sort(files.begin(), files.end());
    return Safetensors(std::move(files));
  }
  const std::map<std::string, std::string> shard_of = read_index(index);
  std::set<std::string> shards;
  for (const auto& [name, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    files.push_back((base / shard).string());
    require(fs::exists(files.back(), ignored), "cannot read {}: {} names it, but it is missing",
            files.back(), index);
  }
  Safetensors result(std::move(files));
  for (const auto& [name, shard] : shard_of) {
    const auto found = result.tensors_.find(name);
    require(found != result.tensors_.end() &&
                fs::path(result.file_of(found->second)).filename() == shard,
            "cannot read {}: it says that tensor {} is in {}, which has no such tensor", index,
            name, shard);
  }
  return result;
}

void Safetensors::read(const StoredTensor& tensor, std::span<std::byte> destination) const {
  const std::string& path = file_of(tensor);
  require(destination.size() == static_cast<std::size_t>(tensor.bytes),
          "cannot read {}: a tensor of {} bytes into {} bytes", path, tensor.bytes,
          destination.size());
  File(path).read(tensor.offset, destination);
}

}  // namespace atl::io
