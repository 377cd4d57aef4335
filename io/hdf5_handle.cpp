#include "io/hdf5_handle.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

namespace atl::io {
namespace {

constexpr hsize_t max_attribute_bytes = 64 << 20;

/// Steps of the error stack come innermost first; keeps the first that says something.
herr_t keep_first(unsigned /*depth*/, const H5E_error2_t* step, void* text) {
  auto& kept = *static_cast<std::string*>(text);
  if (kept.empty() && step->desc != nullptr) kept = step->desc;
  return 0;
}

Handle make_float16(std::size_t exponent_bits, std::size_t mantissa_bits, std::size_t bias) {
  Handle type = checked(H5Tcopy(H5T_IEEE_F32LE), "cannot make a 16-bit float type");
  // In this order: HDF5 refuses a precision below what the present fields need.
  check(H5Tset_fields(type.get(), 15, mantissa_bits, exponent_bits, 0, mantissa_bits),
        "cannot set a float type's fields");
  check(H5Tset_precision(type.get(), 16), "cannot set a float type's precision");
  check(H5Tset_size(type.get(), 2), "cannot set a float type's size");
  check(H5Tset_ebias(type.get(), bias), "cannot set a float type's bias");
  return type;
}

/// Number of elements of an attribute's (simple, or scalar) dataspace, bounded.
hsize_t attribute_elements(hid_t attribute, std::size_t element_bytes, const std::string& what) {
  const Handle space = checked(H5Aget_space(attribute), what);
  const hssize_t elements = H5Sget_simple_extent_npoints(space.get());
  require(elements >= 0 && static_cast<hsize_t>(elements) <= max_attribute_bytes / element_bytes,
          "{}: {} elements; the file is damaged", what, elements);
  return static_cast<hsize_t>(elements);
}

std::string working_directory() {
  std::error_code ignored;
  return std::filesystem::current_path(ignored).string();
}

}  // namespace

bool Handle::close() {
  if (id_ < 0) return true;
  const hid_t id = std::exchange(id_, H5I_INVALID_HID);
  switch (H5Iget_type(id)) {
    case H5I_FILE:
      return H5Fclose(id) >= 0;
    case H5I_GROUP:
      return H5Gclose(id) >= 0;
    case H5I_DATATYPE:
      return H5Tclose(id) >= 0;
    case H5I_DATASPACE:
      return H5Sclose(id) >= 0;
    case H5I_DATASET:
      return H5Dclose(id) >= 0;
    case H5I_ATTR:
      return H5Aclose(id) >= 0;
    case H5I_GENPROP_LST:
      return H5Pclose(id) >= 0;
    default:
      return false;
  }
}

void prepare_hdf5() {
  static const bool prepared = [] {
    // At exit HDF5 would close leftover parallel files, which is collective and so may hang.
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    return true;
  }();
  static_cast<void>(prepared);
}

std::string hdf5_error() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  return text.empty() ? "no reason given" : text;
}

Handle checked(hid_t id, const std::string& what) {
  require(id >= 0, "{} (HDF5: {})", what, id >= 0 ? "" : hdf5_error());
  return Handle(id);
}

void check(herr_t status, const std::string& what) {
  require(status >= 0, "{} (HDF5: {})", what, status >= 0 ? "" : hdf5_error());
}

std::int64_t check_is_hdf5(const std::string& path, const std::string& wanted) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    const int reason = errno;
    fail("cannot read {}: {} (working directory {}); check the path", path, std::strerror(reason),
         working_directory());
  }
  require(S_ISREG(status.st_mode), "cannot read {}: not a regular file; give {}", path, wanted);
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail("cannot read {}: {}; check its permissions", path, std::strerror(errno));
  char start[8] = {};
  stream.read(start, sizeof start);
  require(stream.gcount() == 8 && std::memcmp(start, "\x89HDF\r\n\x1a\n", 8) == 0,
          "cannot read {}: not an HDF5 file; give {}", path, wanted);
  return static_cast<std::int64_t>(status.st_size);
}

Handle open_for_reading(const std::string& path) {
  const std::string what = fmt::format("cannot read {}: truncated or damaged", path);
  const Handle access = checked(H5Pcreate(H5P_FILE_ACCESS), what);
  // A finished file is never written again, and some cluster file systems refuse locks.
  check(H5Pset_file_locking(access.get(), false, true), what);
  return checked(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), what);
}

Handle file_type(DType type) {
  switch (type) {
    case DType::bfloat16:
      return make_float16(8, 7, 127);
    case DType::float16:
      return make_float16(5, 10, 15);
    case DType::uint8:
      return checked(H5Tcopy(H5T_STD_U8LE), "cannot make a type of bytes");
    case DType::float32:
      break;
  }
  return checked(H5Tcopy(H5T_IEEE_F32LE), "cannot make a 32-bit float type");
}

DType dtype_of(hid_t type, const std::string& what) {
  for (DType candidate : {DType::bfloat16, DType::float16, DType::float32, DType::uint8}) {
    if (H5Tequal(type, file_type(candidate).get()) > 0) return candidate;
  }
  fail("{}: elements are neither bfloat16, float16, float32 (little endian) nor uint8", what);
}

void write_text_attribute(hid_t object, const char* name, const std::string& text) {
  const std::string what = fmt::format("cannot write attribute \"{}\"", name);
  const Handle type = checked(H5Tcopy(H5T_C_S1), what);
  check(H5Tset_size(type.get(), text.size()), what);
  check(H5Tset_strpad(type.get(), H5T_STR_NULLPAD), what);
  check(H5Tset_cset(type.get(), H5T_CSET_UTF8), what);
  const Handle space = checked(H5Screate(H5S_SCALAR), what);
  const Handle attribute =
      checked(H5Acreate2(object, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT), what);
  check(H5Awrite(attribute.get(), type.get(), text.data()), what);
}

std::string read_text_attribute(hid_t object, const char* name, const std::string& what) {
  const Handle attribute = checked(H5Aopen(object, name, H5P_DEFAULT), what);
  const Handle type = checked(H5Aget_type(attribute.get()), what);
  require(H5Tget_class(type.get()) == H5T_STRING, "{}: not a string", what);
  const std::size_t size = H5Tget_size(type.get());
  require(size > 0 && size <= max_attribute_bytes, "{}: length {}; the file is damaged", what,
          size);
  require(attribute_elements(attribute.get(), size, what) == 1, "{}: not one string", what);
  require(H5Tis_variable_str(type.get()) == 0, "{}: a string of variable length", what);
  std::string text(size, '\0');
  check(H5Aread(attribute.get(), type.get(), text.data()), what);
  text.resize(text.find_last_not_of('\0') + 1);
  return text;
}

void make_u64_attribute(hid_t object, const char* name, std::size_t elements) {
  const std::string what = fmt::format("cannot write attribute \"{}\"", name);
  const hsize_t extent = elements;
  const Handle space = checked(H5Screate_simple(1, &extent, nullptr), what);
  checked(H5Acreate2(object, name, H5T_STD_U64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), what);
}

void set_u64_attribute(hid_t object, const char* name, const std::uint64_t* values) {
  const std::string what = fmt::format("cannot write attribute \"{}\"", name);
  const Handle attribute = checked(H5Aopen(object, name, H5P_DEFAULT), what);
  check(H5Awrite(attribute.get(), H5T_NATIVE_UINT64, values), what);
}

std::vector<std::uint64_t> read_u64_attribute(hid_t object, const char* name,
                                              const std::string& what) {
  const Handle attribute = checked(H5Aopen(object, name, H5P_DEFAULT), what);
  const Handle type = checked(H5Aget_type(attribute.get()), what);
  require(H5Tequal(type.get(), H5T_STD_U64LE) > 0, "{}: not unsigned 64-bit integers", what);
  std::vector<std::uint64_t> values(
      attribute_elements(attribute.get(), sizeof(std::uint64_t), what));
  check(H5Aread(attribute.get(), H5T_NATIVE_UINT64, values.data()), what);
  return values;
}

}  // namespace atl::io
