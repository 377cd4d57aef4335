#pragma once
// Reading safetensors files: a header in JSON that says where each tensor's bytes are.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "compute/types.hpp"

namespace atl::io {

/// Where one tensor is.
struct StoredTensor {
  std::size_t file = 0;  ///< index into Safetensors::files()
  DType dtype = DType::bfloat16;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  ///< of its first byte in the file
  std::int64_t bytes = 0;
};

/// The tensors of one or several safetensors files. Headers are read and checked at once, tensors
/// on demand.
class Safetensors {
 public:
  /// The files of a Hugging Face folder: those that `model.safetensors.index.json` names, else
  /// `model.safetensors`, else every `*.safetensors`. Throws Error naming file and tensor: header
  /// malformed, too long or beyond the file; offsets out of range, overlapping, leaving holes or
  /// not fitting shape and type; unsupported type; a name twice; a shard or an indexed tensor
  /// missing.
  static Safetensors open_folder(const std::string& folder);

  /// The given files, in this order.
  explicit Safetensors(std::vector<std::string> files);

  const std::vector<std::string>& files() const { return files_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::string& file_of(const StoredTensor& tensor) const { return files_[tensor.file]; }

  /// Reads a tensor's bytes (exactly tensor.bytes), as stored.
  void read(const StoredTensor& tensor, std::span<std::byte> destination) const;

 private:
  void add_file(std::size_t file);

  std::vector<std::string> files_;
  std::map<std::string, StoredTensor> tensors_;
};

}  // namespace atl::io
