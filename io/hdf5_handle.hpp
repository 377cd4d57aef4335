#pragma once
// HDF5 for this room: handles that close themselves, calls that throw, the element types on file.

#include <hdf5.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "compute/error.hpp"
#include "compute/types.hpp"

namespace atl::io {

/// What the model file's format is made of, for its reader and its writer.
inline constexpr const char* model_format = "atoll-model";
inline constexpr std::uint64_t model_format_version = 2;
/// The version of files without attachments, which earlier programs read too.
inline constexpr std::uint64_t plain_model_format_version = 1;
/// The version of files whose tensors have several types, with or without attachments.
inline constexpr std::uint64_t mixed_model_format_version = 3;
/// The version of files that hold codes, with or without attachments.
inline constexpr std::uint64_t coded_model_format_version = 4;
/// Datasets below it are no tensors.
inline constexpr std::string_view attachment_group = "/tokenizer/";
inline constexpr const char* checksum_attribute = "xxh3_64";

/// Owns one HDF5 identifier of any kind.
class Handle {
 public:
  Handle() = default;
  explicit Handle(hid_t id) : id_(id) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~Handle() { close(); }

  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  /// Closes now; false when HDF5 could not (a file whose last bytes did not reach the disk).
  bool close();
  /// Gives the identifier up without closing it.
  hid_t release() { return std::exchange(id_, H5I_INVALID_HID); }

 private:
  hid_t id_ = H5I_INVALID_HID;
};

/// Keeps HDF5 from printing its error stack and from closing files behind our back at exit.
/// Call before the first use of HDF5; further calls cost nothing.
void prepare_hdf5();

/// What HDF5 says about the call that failed last: its innermost description.
std::string hdf5_error();

/// Wraps an identifier that HDF5 returned; throws Error "WHAT: what HDF5 says" when it is invalid.
Handle checked(hid_t id, const std::string& what);
/// The same for calls that return a status.
void check(herr_t status, const std::string& what);

/// Tells what a person can mend (a wrong path) from a damaged file; `wanted` says what to give
/// instead. Returns the size in bytes. Throws Error.
std::int64_t check_is_hdf5(const std::string& path, const std::string& wanted);
/// Opens a finished file. Throws Error when it is truncated or damaged.
Handle open_for_reading(const std::string& path);

/// The element type on file: IEEE float32, IEEE half, or bfloat16 (the upper half of a float32), a
/// custom 16-bit float that HDF5's tools and h5py read as numbers, or bytes. Little endian.
Handle file_type(DType type);
/// Which of our types `type` is; throws Error naming `what` when it is none of them.
DType dtype_of(hid_t type, const std::string& what);

/// Writes a fixed-length UTF-8 string attribute (variable-length ones live in a heap without
/// checksum).
void write_text_attribute(hid_t object, const char* name, const std::string& text);
/// Reads a fixed-length string attribute; throws Error naming `what`.
std::string read_text_attribute(hid_t object, const char* name, const std::string& what);

/// Makes an unsigned 64-bit attribute of `elements` elements, to be filled by set_u64_attribute.
void make_u64_attribute(hid_t object, const char* name, std::size_t elements);
void set_u64_attribute(hid_t object, const char* name, const std::uint64_t* values);
/// Reads a one-dimensional unsigned 64-bit attribute; throws Error naming `what`.
std::vector<std::uint64_t> read_u64_attribute(hid_t object, const char* name,
                                              const std::string& what);

}  // namespace atl::io
