#include "io/safetensors.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"

namespace atl::io {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t max_header_bytes = 100'000'000;  // the format's own limit
constexpr std::int64_t max_extent = std::int64_t{1} << 48;

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

/// The float types that can be read, and the sizes of the others that the format knows.
std::optional<DType> dtype_of(const std::string& name) {
  if (name == "BF16") return DType::bfloat16;
  if (name == "F16") return DType::float16;
  if (name == "F32") return DType::float32;
  return std::nullopt;
}

/// Bytes of an element; empty for types of later versions of the format.
std::optional<std::int64_t> element_bytes(const std::string& dtype) {
  static const std::map<std::string, std::int64_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1},
      {"U16", 2},  {"I16", 2}, {"F16", 2}, {"BF16", 2},    {"U32", 4},     {"I32", 4},
      {"F32", 4},  {"U64", 8}, {"I64", 8}, {"F64", 8},     {"C64", 8}};
  const auto found = sizes.find(dtype);
  if (found == sizes.end()) return std::nullopt;
  return found->second;
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
StoredTensor parse_entry(const Json& entry, std::int64_t data_begin, const std::string& what) {
  require(entry.is_object() && entry.contains("dtype") && entry["dtype"].is_string() &&
              entry.contains("shape") && entry["shape"].is_array() &&
              entry.contains("data_offsets") && entry["data_offsets"].is_array() &&
              entry["data_offsets"].size() == 2,
          "{}: its entry is {}, must have dtype, shape and two data_offsets", what, shown(entry));
  StoredTensor tensor;
  tensor.dtype_name = entry["dtype"].get<std::string>();
  tensor.dtype = dtype_of(tensor.dtype_name);
  const std::int64_t begin = count_of(entry["data_offsets"][0], max_extent, what, "data_offsets");
  const std::int64_t end = count_of(entry["data_offsets"][1], max_extent, what, "data_offsets");
  require(begin <= end, "{}: data_offsets {} decrease", what, shown(entry["data_offsets"]));
  tensor.offset = data_begin + begin;
  tensor.bytes = end - begin;
  const std::optional<std::int64_t> of_element = element_bytes(tensor.dtype_name);
  std::int64_t bytes = of_element.value_or(0);
  for (const Json& extent : entry["shape"]) {
    // Bounded at each step, so that the product cannot overflow.
    const std::int64_t limit = max_extent / std::max<std::int64_t>(bytes, 1);
    tensor.shape.push_back(count_of(extent, limit, what, "shape"));
    bytes *= tensor.shape.back();
  }
  require(!of_element || bytes == tensor.bytes,
          "{}: shape {} of {} takes {} bytes, data_offsets {} span {}", what, shown(entry["shape"]),
          tensor.dtype_name, bytes, shown(entry["data_offsets"]), tensor.bytes);
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
    if (tensor.offset != end) {
      const auto& [last_name, last] = tensors.back();
      require(last.offset + last.bytes <= file_bytes,
              "cannot read {}: tensor {} ends at byte {} by its data_offsets, the file has {}",
              path, last_name, last.offset + last.bytes, file_bytes);
      fail("cannot read {}: tensor {} {} (it begins at {}, {} was expected)", path, name,
           tensor.offset < end ? "overlaps the one before" : "leaves a hole before it",
           tensor.offset - data_begin, end - data_begin);
    }
    end += tensor.bytes;
  }
  require(end <= file_bytes,
          "cannot read {}: it is truncated (by its header it has {} bytes, here are {}); download "
          "or copy it again",
          path, end, file_bytes);
  require(end == file_bytes, "cannot read {}: its tensors end at byte {}, the file has {}", path,
          end, file_bytes);
}

std::string read_header(const File& file, const std::string& path) {
  require(file.size() >= 8,
          "cannot read {}: {} bytes are too few for a safetensors file; download or copy it again",
          path, file.size());
  std::array<std::byte, 8> length{};
  file.read(0, length);
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 8; i-- > 0;) {
    header_bytes = (header_bytes << 8) | std::to_integer<std::uint64_t>(length[i]);
  }
  require(std::memcmp(length.data(), "version ", length.size()) != 0,
          "cannot read {}: it is a pointer of Git LFS in place of the file; run git lfs pull",
          path);
  require(header_bytes <= max_header_bytes,
          "cannot read {}: header length {}, must be at most {}; not a safetensors file?", path,
          header_bytes, max_header_bytes);
  require(static_cast<std::int64_t>(header_bytes) <= file.size() - 8,
          "cannot read {}: a header of {} bytes does not fit the file of {} (truncated, or no "
          "safetensors file); download or copy it again",
          path, header_bytes, file.size());
  std::string header(header_bytes, '\0');
  file.read(8, std::as_writable_bytes(std::span(header)));
  return header;
}

}  // namespace

Safetensors::Safetensors(std::vector<std::string> files,
                         std::optional<std::map<std::string, std::string>> index)
    : files_(std::move(files)), index_(std::move(index)) {
  for (std::size_t file = 0; file < files_.size(); ++file) add_file(file);
}

void Safetensors::add_file(std::size_t index) {
  const std::string& path = files_[index];
  const File file(path);
  const std::string header = read_header(file, path);
  const auto data_begin = static_cast<std::int64_t>(8 + header.size());
  const std::string what = fmt::format("cannot read {}: its header", path);
  std::vector<std::string> repeated;
  const Json json = parse_json_object(header, what, &repeated);
  if (!repeated.empty()) fail("{}: {} comes twice", what, shown(repeated.front()));
  std::vector<std::pair<std::string, StoredTensor>> found;
  for (const auto& [name, entry] : json.items()) {
    if (name == "__metadata__") continue;
    found.emplace_back(
        name, parse_entry(entry, data_begin, fmt::format("cannot read {}: tensor {}", path, name)));
    found.back().second.file = index;
  }
  check_coverage(found, data_begin, file.size(), path);
  for (auto& [name, tensor] : found) add(name, std::move(tensor));
}

void Safetensors::add(const std::string& name, StoredTensor tensor) {
  tensor.off_index = index_ && indexed_file(name) != files_[tensor.file];
  const auto [place, is_new] = tensors_.emplace(name, tensor);
  if (is_new) return;
  require(index_.has_value(), "tensor {} is in {} and again in {}; keep one of them", name,
          file_of(place->second), files_[tensor.file]);
  doubled_.insert(name);
  if (place->second.off_index) place->second = std::move(tensor);
}

std::string Safetensors::indexed_file(const std::string& name) const {
  if (!index_) return {};
  const auto found = index_->find(name);
  return found == index_->end() ? std::string() : found->second;
}

void Safetensors::read(const StoredTensor& tensor, std::span<std::byte> destination) const {
  const std::string& path = file_of(tensor);
  require(destination.size() == static_cast<std::size_t>(tensor.bytes),
          "cannot read {}: a tensor of {} bytes into {} bytes", path, tensor.bytes,
          destination.size());
  File(path).read(tensor.offset, destination);
}

}  // namespace atl::io
