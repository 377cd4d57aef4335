#pragma once
// Files of experts' choices: what each token of a run was sent to in every MoE layer. Written by
// all ranks of a run, in HDF5; read from there, or from a .npy of shape [tokens, layers, k].
//
// While it is written the file has the name PATH.partial and is whole HDF5 at any time: rows are
// put at their place by pwrite(), and a killed run leaves what it has written to the one that
// resumes.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace atl::io {

/// Attribute "format" of such files.
inline constexpr const char* routing_format = "atoll-routing";

/// What a file of choices holds: rows of [layers, top_k] experts, one for every position of every
/// request, in the order of the input.
struct RoutingLayout {
  std::string model;    ///< identity of the model file; empty: any of such layers
  int num_experts = 0;  ///< 0: not known (.npy)
  int top_k = 0;
  std::vector<int> layers;              ///< the MoE layers, rising; of a .npy 0, 1, ...
  std::vector<std::string> requests;    ///< ids; of a .npy none: it is one list of tokens
  std::vector<std::int64_t> first_row;  ///< [requests + 1]; of a .npy {0, tokens}

  std::int64_t total_rows() const { return first_row.back(); }
  std::int64_t row_choices() const { return static_cast<std::int64_t>(layers.size()) * top_k; }
  bool operator==(const RoutingLayout&) const = default;
};

/// xxh3-64 of a request's rows: of the ids as uint16, and of the weights as float32.
struct RoutingSums {
  std::uint64_t experts = 0;
  std::uint64_t weights = 0;
  bool operator==(const RoutingSums&) const = default;
};
/// The same, row by row.
class RoutingSummer {
 public:
  RoutingSummer();
  ~RoutingSummer();
  RoutingSummer(RoutingSummer&&) noexcept;
  RoutingSummer& operator=(RoutingSummer&&) noexcept;
  void add(std::span<const std::uint16_t> experts, std::span<const float> weights);
  RoutingSums sums() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Where the file is until it is whole.
std::string unfinished_routing_file(const std::string& path);
/// Makes that file, with no rows; one rank calls it before the others open it. Throws Error.
void create_routing_file(const std::string& path, const RoutingLayout& layout);
/// For a run that resumes: the unfinished file, or else the finished one, which is unfinished
/// again. One rank calls it. Throws Error where there is none, or one of another layout.
void reopen_routing_file(const std::string& path, const RoutingLayout& layout);
/// Flushes it to disk and gives it its name; one rank calls it when all have written. Throws Error.
void finish_routing_file(const std::string& path);

/// Writes to the unfinished file; every rank has one, and none knows of the others.
class RoutingWriter {
 public:
  /// Throws Error when the file is not there or cannot be written.
  RoutingWriter(const std::string& path, const RoutingLayout& layout);
  ~RoutingWriter();
  RoutingWriter(const RoutingWriter&) = delete;
  RoutingWriter& operator=(const RoutingWriter&) = delete;

  /// Rows [rows, layers, top_k] of a request from `position` on.
  void write(std::size_t request, std::int64_t position, std::span<const std::uint16_t> experts,
             std::span<const float> weights);
  /// After write(): so many rows of the request are there, with these checksums.
  void set_rows(std::size_t request, std::int64_t rows, const RoutingSums& sums);

  std::int64_t num_rows(std::size_t request) const;  ///< that are there
  RoutingSums sums(std::size_t request) const;       ///< as they were set
  /// The first `rows` rows, read back. Throws Error where fewer are there.
  RoutingSummer summer_of(std::size_t request, std::int64_t rows) const;
  std::int64_t bytes_written() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads choices from either kind of file.
class RoutingReader {
 public:
  /// Throws Error: missing, neither kind, truncated, damaged, inconsistent.
  explicit RoutingReader(const std::string& path);
  ~RoutingReader();
  RoutingReader(const RoutingReader&) = delete;
  RoutingReader& operator=(const RoutingReader&) = delete;

  const std::string& path() const;
  const RoutingLayout& layout() const;
  bool is_trace() const;     ///< a .npy
  bool has_weights() const;  ///< always false of a .npy
  std::int64_t num_rows(
      std::size_t request) const;  ///< that are filled; of a .npy request 0 has all
  /// Rows [rows, layers, top_k] of a request from `position` on; `weights` is empty where there are
  /// none to read. Ids come as they stand there, in range or not.
  void read(std::size_t request, std::int64_t position, std::int64_t rows,
            std::span<std::int32_t> experts, std::span<float> weights);
  /// The checksums of a request's rows; nothing where the file has none.
  std::optional<RoutingSums> sums(std::size_t request) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Whether a file begins as .npy files do.
bool is_npy(const std::string& path);

}  // namespace atl::io
