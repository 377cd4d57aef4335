#pragma once
// What is to be imported, found out before the first tensor is read, and how it is written.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "app/model/import.hpp"
#include "app/model/import_places.hpp"
#include "app/model/model_config.hpp"
#include "app/model/quantised.hpp"
#include "app/model/tensors.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "io/safetensors.hpp"

namespace atl {

inline constexpr std::size_t max_tensors_named = 8;  ///< in a warning, or in as many warnings

/// A slab's bytes in the folder: a tensor, or a part of one.
struct Source {
  std::string name;
  io::StoredTensor part;
  std::vector<std::int64_t> shape;  ///< of the whole tensor
  std::int64_t element = 0;         ///< of the whole tensor, at which the part begins
  Picking picking;                  ///< of the part's elements
  CodedMatrix coded;                ///< where the tensor holds few bits
};

/// One model file tensor and where its slabs come from.
struct Import {
  TensorInfo target;
  std::vector<Source> slabs;
};

/// A folder's tensors on their way into a model file. Equal folders, equal plans.
struct ImportPlan {
  io::Safetensors stored;
  ModelConfig config;
  std::vector<Import> imports;
  std::vector<io::Attachment> tokenizer;
};

/// Reads the headers of a folder. Throws Error as import_hf() does.
ImportPlan plan_import(const std::string& folder, KeptWeights weights, const io::Warn& warn);

/// Lets what `imports`, of all tensors of `config`, have in few bits stay so, weight by weight
/// where all of a weight is in one code: both get the datasets of codes and scales. `warn` hears
/// what does not stay.
void keep_codes(std::vector<Import>& imports, ModelConfig& config, const io::Warn& warn);

/// Reads a slab of codes, or of their scales, as the model file has them; `buffers` hold it.
struct KeptBuffers {
  std::vector<std::byte> read;
  std::vector<std::byte> picked;
  std::vector<std::byte> scales;
};
std::span<const std::byte> read_kept_slab(const io::Safetensors& stored, const TensorInfo& target,
                                          const Source& source, KeptBuffers& buffers);
/// Whether elements of a slab may be other than finite, as float32 or rounded to `dtype`, by its
/// `codes`, from read_kept_slab(), and the folder's scales.
bool may_be_non_finite(const io::Safetensors& stored, const Source& source,
                       std::span<const std::byte> codes, DType dtype, KeptBuffers& buffers);

/// Who writes: the rank-th of several, each some of the slabs, or one alone.
struct ImportShare {
  int rank = 0;
  int num_ranks = 1;
  int mpi_comm_f = io::single_process;
};

/// Collective over those who share it: reads the tensors, one part at a time, and writes the model
/// file. `warn` hears of values that are not finite, of those that this rank has read, and on the
/// first rank how far it is, where there is much to do.
void write_import(const ImportPlan& plan, const std::string& output, const ImportShare& share,
                  const io::Warn& warn);

/// Buffers of read_as().
struct ReadBuffers {
  std::vector<std::byte> bytes;
  std::vector<std::byte> converted;
  std::vector<float> decoded;
};

/// Reads a part of a tensor, or decodes it. `look` gets its numbers and their type; what is
/// returned, as `dtype`, is in one of the buffers.
template <class Look>
std::span<const std::byte> read_as(const io::Safetensors& stored, const Source& source, DType dtype,
                                   ReadBuffers& buffers, const Look& look) {
  std::span<const std::byte> values;
  DType type = DType::float32;
  if (source.coded.code != Code::none) {
    read_coded(stored, source.coded, buffers.decoded);
    values = std::as_bytes(std::span(buffers.decoded));
  } else {
    buffers.bytes.resize(static_cast<std::size_t>(source.part.bytes));
    stored.read(source.part, buffers.bytes);
    values = buffers.bytes;
    type = *source.part.dtype;
  }
  look(values, type);
  if (type == dtype) return values;
  buffers.converted.resize(values.size() / size_of(type) * size_of(dtype));
  try {
    compute::convert(values, type, buffers.converted, dtype);
  } catch (const Error& error) {
    fail("tensor {} in {}: {} (write that as \"dtype\" of config.json)", source.name,
         stored.file_of(source.part), error.what());
  }
  return buffers.converted;
}

}  // namespace atl
