#pragma once
// The checkpoint of a run: one HDF5 file, written by all ranks through MPI-IO, in a form that knows
// no ranks, pages or backends. See io/README.md.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "compute/sampling.hpp"
#include "compute/types.hpp"

namespace atl::io {

/// What file_format() says of a checkpoint.
inline constexpr const char* checkpoint_format = "atoll-checkpoint";

/// Keys and values are written, checked and read back in pieces of so many positions.
inline constexpr std::int64_t piece_positions = 1024;

/// A sequence under way, or a beginning that several have in common: its keys and values are there
/// once, before those of the ones that go on from it.
struct CheckpointSequence {
  std::int64_t request = 0;     ///< index into the requests; shared_beginning: no sequence
  std::int64_t generated = 0;   ///< tokens
  std::int64_t logprobs = 0;    ///< how many: of the generated tokens, or scored so far
  std::int64_t cached = 0;      ///< positions whose keys and values are kept, behind `first`
  std::int64_t complete = 0;    ///< 0: it was finished before they were all written
  std::int64_t tops = 0;        ///< most probable tokens kept beside the log-probabilities, in all
  std::int64_t greedy = 1;      ///< in scoring: each scored token was the most probable one
  std::int64_t beginning = -1;  ///< that it goes on from: index among its rank's, before its own
  std::int64_t first = 0;       ///< positions that are there

  static constexpr std::int64_t shared_beginning = -1;
  bool is_beginning() const { return request == shared_beginning; }
  std::int64_t positions() const { return first + cached; }
  std::int64_t num_pieces() const { return (cached + piece_positions - 1) / piece_positions; }
};

/// What a checkpoint holds beside the numbers of its sequences; the same on all ranks, but for what
/// is rank 0's alone.
struct CheckpointContents {
  std::string state;  ///< JSON: run, step, options, placement
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_experts = 0;
  DType dtype = DType::bfloat16;
  std::vector<CheckpointSequence> sequences;  ///< of all ranks, rank by rank
  std::vector<std::int64_t> sequences_of;     ///< [ranks that wrote it], how many are whose
  std::vector<std::int64_t> pending;          ///< requests that had not begun; rank 0's
  std::vector<std::int64_t> expert_loads;     ///< [layers * experts], tokens sent to each so far

  /// Elements of one position's keys (or values) in one layer.
  std::int64_t row_elements() const { return std::int64_t{num_kv_heads} * head_dim; }
  std::int64_t row_bytes() const {
    return row_elements() * static_cast<std::int64_t>(size_of(dtype));
  }
};

/// Positions [first, first + count) of those that are kept as one sequence's own.
struct CheckpointPiece {
  std::int64_t first = 0;
  std::int64_t count = 0;
};
CheckpointPiece piece_of(const CheckpointSequence& sequence, std::int64_t index);

/// Writes a checkpoint. Collective calls are marked; what fails in one of them fails on all ranks
/// alike. The file has a temporary name (PATH.partial.XXXXXXXX) until finish() renames it; a writer
/// that is not finished removes it. All calls come from one thread.
class CheckpointWriter {
 public:
  /// Collective. `tokens`, `logprobs` and `tops` are those of this rank's sequences, one after the
  /// other.
  /// `mpi_comm_f` as in ModelFileWriter. Throws Error: the folder cannot be written, no room.
  CheckpointWriter(const std::string& path, const CheckpointContents& contents,
                   std::span<const std::int32_t> tokens, std::span<const float> logprobs,
                   std::span<const SampledToken> tops, int mpi_comm_f);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Writes a piece of the `sequence`-th sequence of this rank: keys and values
  /// [count, kv_heads, head_dim] of one layer. Not collective.
  void write_piece(std::int64_t sequence, int layer, std::int64_t piece,
                   std::span<const std::byte> keys, std::span<const std::byte> values);
  /// This rank has written all pieces of a sequence.
  void set_complete(std::int64_t sequence);
  /// Begins to flush what this rank has written to disk, beside the caller; synced() tells when
  /// that is done. Throws Error when it failed.
  void start_sync();
  bool synced();

  /// Collective, when all ranks have written and synced what they will: writes the checksums,
  /// flushes, renames.
  void finish();
  /// Collective: closes and removes the file.
  void abandon();

  std::int64_t bytes_written() const;  ///< by this rank

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Reads a checkpoint. Not collective; everything it returns has been compared with its checksum.
class CheckpointReader {
 public:
  /// Reads everything but keys and values. Throws Error: missing, truncated, damaged, another
  /// version.
  explicit CheckpointReader(const std::string& path);
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  const std::string& path() const;
  const CheckpointContents& contents() const;
  std::int64_t bytes() const;  ///< of the file

  std::span<const std::int32_t> tokens_of(std::size_t sequence) const;  ///< generated
  std::span<const float> logprobs_of(std::size_t sequence) const;
  std::vector<SampledToken> tops_of(std::size_t sequence) const;
  /// The sequences whose keys and values are a sequence's, in the order of its positions: the
  /// beginnings that it goes on from, and itself.
  std::vector<std::size_t> chain_of(std::size_t sequence) const;
  /// Whether all of them are there.
  bool is_complete(std::size_t sequence) const;

  /// Reads keys and values, each [count, kv_heads, head_dim], of one layer.
  void read_piece(std::size_t sequence, int layer, std::int64_t piece, std::span<std::byte> keys,
                  std::span<std::byte> values);
  /// Reads the pieces of every `stride`-th complete sequence, from `first` on: between them, so
  /// many ranks read all. Throws Error at the first damage.
  void verify(std::size_t first, std::size_t stride);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::io
