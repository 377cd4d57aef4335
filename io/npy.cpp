#include "io/npy.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <limits>
#include <string_view>

#include "compute/error.hpp"
#include "io/routing_file.hpp"

namespace atl::io {

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view magic = "\x93NUMPY";
constexpr std::int64_t max_elements = std::int64_t{1} << 44;

/// Reads all of `bytes` at `offset`; false where the file ends before.
bool read_at(int file, void* to, std::size_t bytes, std::int64_t offset) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = pread(file, at, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    bytes -= static_cast<std::size_t>(got);
    offset += got;
  }
  return true;
}

/// The text behind a key of the header, which is a Python dictionary on one line.
std::string_view value_of(std::string_view header, std::string_view key) {
  const auto at = header.find(key);
  if (at == std::string_view::npos) return {};
  auto value = header.substr(at + key.size());
  const auto begin = value.find_first_not_of("'\": ");
  return begin == std::string_view::npos ? std::string_view() : value.substr(begin);
}

std::vector<std::int64_t> shape_of(std::string_view text) {
  std::vector<std::int64_t> shape;
  if (!text.starts_with('(')) return shape;
  text = text.substr(1, text.find(')') - 1);
  while (true) {
    const auto begin = text.find_first_of("0123456789");
    if (begin == std::string_view::npos) return shape;
    text.remove_prefix(begin);
    std::int64_t extent = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), extent);
    if (error != std::errc()) return {};
    shape.push_back(extent);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  }
}

template <class T>
void convert(const std::vector<char>& bytes, std::span<std::int32_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    out[i] = std::in_range<std::int32_t>(value) ? static_cast<std::int32_t>(value) : -1;
  }
}

}  // namespace

bool is_npy(const std::string& path) {
  char start[6] = {};
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  const bool found = read_at(file, start, sizeof start, 0) && magic == std::string_view(start, 6);
  ::close(file);
  return found;
}

NpyIntegers::NpyIntegers(const std::string& path) : path_(path) {
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) fail("cannot read {}: {}; check the path", path, std::strerror(errno));
  try {
    unsigned char start[12] = {};
    require(read_at(file_, start, 10, 0) &&
                magic == std::string_view(reinterpret_cast<char*>(start), 6),
            "cannot read {}: no .npy file", path);
    // Version 1 has two bytes for the header's length, later ones four.
    const std::int64_t prefix = start[6] == 1 ? 10 : 12;
    require(start[6] >= 1 && start[6] <= 3 && read_at(file_, start, 12, 0),
            "cannot read {}: a .npy of version {}, must be 1 to 3", path, start[6]);
    std::int64_t length = start[8] + 256 * start[9];
    if (prefix == 12) length += (std::int64_t{start[10]} << 16) + (std::int64_t{start[11]} << 24);
    require(length <= 1 << 20, "cannot read {}: a header of {} bytes", path, length);
    std::string header(static_cast<std::size_t>(length), '\0');
    require(read_at(file_, header.data(), header.size(), prefix),
            "cannot read {}: truncated in its header", path);
    data_begin_ = prefix + length;
    const std::string_view type = value_of(header, "'descr'");
    require(type.size() > 3 && (type[0] == '<' || type[0] == '|') &&
                (type[1] == 'u' || type[1] == 'i') &&
                std::string_view("1248").find(type[2]) != std::string_view::npos && type[3] == '\'',
            "cannot read {}: its elements are not little-endian integers; save it with "
            "astype('u2')",
            path);
    is_signed_ = type[1] == 'i';
    element_bytes_ = static_cast<std::size_t>(type[2] - '0');
    require(value_of(header, "'fortran_order'").starts_with("False"),
            "cannot read {}: it is in Fortran order; save it with numpy.ascontiguousarray()", path);
    shape_ = shape_of(value_of(header, "'shape'"));
    std::int64_t elements = 1;
    for (const std::int64_t extent : shape_) {
      require(extent > 0 && elements <= max_elements / extent, "cannot read {}: a dimension of {}",
              path, extent);
      elements *= extent;
    }
    struct stat status {};
    fstat(file_, &status);
    const std::int64_t needed = data_begin_ + elements * static_cast<std::int64_t>(element_bytes_);
    require(status.st_size >= needed, "cannot read {}: truncated ({} of {} bytes)", path,
            status.st_size, needed);
  } catch (...) {
    ::close(file_);
    throw;
  }
}

NpyIntegers::~NpyIntegers() {
  ::close(file_);
}

void NpyIntegers::read(std::int64_t first, std::span<std::int32_t> out) const {
  std::vector<char> bytes(out.size() * element_bytes_);
  require(read_at(file_, bytes.data(), bytes.size(),
                  data_begin_ + first * static_cast<std::int64_t>(element_bytes_)),
          "cannot read {}: it has become shorter", path_);
  switch (element_bytes_) {
    case 1:
      return is_signed_ ? convert<std::int8_t>(bytes, out) : convert<std::uint8_t>(bytes, out);
    case 2:
      return is_signed_ ? convert<std::int16_t>(bytes, out) : convert<std::uint16_t>(bytes, out);
    case 4:
      return is_signed_ ? convert<std::int32_t>(bytes, out) : convert<std::uint32_t>(bytes, out);
    default:
      return is_signed_ ? convert<std::int64_t>(bytes, out) : convert<std::uint64_t>(bytes, out);
  }
}

}  // namespace atl::io
