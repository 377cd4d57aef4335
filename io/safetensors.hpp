#pragma once
// Reading safetensors files: a header in JSON that says where each tensor's bytes are.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "compute/types.hpp"

namespace atl::io {

/// Takes a line for the user: what was chosen where there was a choice, or left aside.
using Warn = std::function<void(const std::string&)>;

/// Throws Error when `path` is a symbolic link to what cannot be read, as an unfinished download
/// leaves it: the file is meant to be there.
void refuse_dangling_link(const std::string& path);

/// Where one tensor is.
struct StoredTensor {
  std::size_t file = 0;        ///< index into Safetensors::files()
  std::optional<DType> dtype;  ///< empty: a type that Atoll does not read
  std::string dtype_name;      ///< as stored
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  ///< of its first byte in the file
  std::int64_t bytes = 0;
  bool off_index = false;  ///< the folder's index does not say that it is in this file
};

/// The tensors of one or several safetensors files. Headers are read and checked at once, tensors
/// on demand.
class Safetensors {
 public:
  /// The files of a Hugging Face folder, as `transformers` reads it: `weights` where the
  /// configuration names a file; else `model.safetensors`; else those that
  /// `model.safetensors.index.json` names, and of a tensor in several the one that the index says;
  /// else every other `*.safetensors` that is neither hidden nor another model's. `warn` hears of
  /// files that were left aside. Throws Error naming file and tensor: header malformed, too long or
  /// beyond the file; offsets overlapping, leaving holes, not fitting shape and type or beyond the
  /// file; a name twice without an index; a shard missing, or without an index of another save by
  /// its name; a link to nowhere.
  static Safetensors open_folder(const std::string& folder, const Warn& warn = {},
                                 const std::string& weights = {});

  /// The given files, in this order. `index` has the file of each tensor (a path as in `files`):
  /// of a tensor that several hold, that one counts, else the last; without an index none may be
  /// in two.
  explicit Safetensors(std::vector<std::string> files,
                       std::optional<std::map<std::string, std::string>> index = std::nullopt);

  const std::vector<std::string>& files() const { return files_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::string& file_of(const StoredTensor& tensor) const { return files_[tensor.file]; }
  /// Where the index says that a tensor is; empty without an index or an entry.
  std::string indexed_file(const std::string& name) const;
  /// Tensors that several files hold.
  const std::set<std::string>& doubled() const { return doubled_; }

  /// Reads a tensor's bytes (exactly tensor.bytes), as stored.
  void read(const StoredTensor& tensor, std::span<std::byte> destination) const;

 private:
  void add_file(std::size_t file);
  void add(const std::string& name, StoredTensor tensor);

  std::vector<std::string> files_;
  std::optional<std::map<std::string, std::string>> index_;
  std::map<std::string, StoredTensor> tensors_;
  std::set<std::string> doubled_;
};

}  // namespace atl::io
