#pragma once
// The activations file: the residual stream x after some layers of a run, in float32, HDF5. Rows
// are ordered by request as in the input, then by position, whatever ranks computed them.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace atl::io {

/// Attribute "format" of such files.
inline constexpr const char* activations_format = "atoll-activations";

/// What an activations file holds. Request r owns rows [first_row[r], first_row[r + 1]) of every
/// layer, one for each position that its tokens may take; the first num_rows[r] of them are filled,
/// the others are zero.
struct ActivationLayout {
  std::int64_t hidden = 0;
  std::vector<int> layers;              ///< rising
  std::vector<std::string> requests;    ///< ids, in order of the input
  std::vector<std::int64_t> first_row;  ///< [requests + 1]
  std::string model;                    ///< identity of the model file

  std::int64_t total_rows() const { return first_row.back(); }
};

/// Writes an activations file with parallel HDF5 under a temporary name, as ModelFileWriter does.
class ActivationWriter {
 public:
  /// Collective over the communicator `mpi_comm_f` (a Fortran handle, or single_process). Throws
  /// Error on all ranks alike.
  ActivationWriter(const std::string& path, const ActivationLayout& layout, int mpi_comm_f);
  ~ActivationWriter();
  ActivationWriter(const ActivationWriter&) = delete;
  ActivationWriter& operator=(const ActivationWriter&) = delete;

  /// Writes x [rows, hidden] of request `request` from `position` on, for layers[layer].
  /// Independent of the other ranks, as write_tokens is. Throws Error.
  void write(std::size_t layer, std::size_t request, std::int64_t position,
             std::span<const float> x);
  /// The token ids at these positions, which also counts them as filled.
  void write_tokens(std::size_t request, std::int64_t position,
                    std::span<const std::int32_t> tokens);
  /// Collective: adds the counts, flushes, renames. Throws Error on all ranks alike.
  void close();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads an activations file.
class ActivationReader {
 public:
  /// Throws Error: missing, not HDF5, not an activations file, truncated, inconsistent.
  explicit ActivationReader(const std::string& path);
  ~ActivationReader();
  ActivationReader(const ActivationReader&) = delete;
  ActivationReader& operator=(const ActivationReader&) = delete;

  const std::string& path() const;
  const ActivationLayout& layout() const;
  std::int64_t num_rows(std::size_t request) const;  ///< that are filled
  /// Ids at the filled positions of a request.
  std::vector<std::int32_t> tokens(std::size_t request);
  /// x of `rows` positions of a request, [rows, hidden], for layers[layer].
  void read(std::size_t layer, std::size_t request, std::int64_t position, std::int64_t rows,
            std::span<float> x);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::io
