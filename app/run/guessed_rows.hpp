#pragma once
// Which experts the rows of guessed tokens chose, to take those of wrong guesses out of the counts
// of experts' tokens: these are to be what they are without guesses.

#include <cstdint>
#include <span>
#include <vector>

#include "app/plan/job_layout.hpp"
#include "app/run/batcher.hpp"
#include "app/run/driver.hpp"
#include "app/run/routing_record.hpp"
#include "compute/weights.hpp"

namespace atl {

class GuessedRows {
 public:
  /// Of a rank with these layers and this share of the rows of so many chunks.
  GuessedRows(const ModelShape& shape, const LayerRange& layers, int max_chunks,
              const compute::AttentionShare& share);

  /// Of the next pass, with its first chunk in `first_slot`.
  void prepare(Batcher& batch, int first_slot);
  /// Where a layer's choices of a chunk with guesses go; nowhere of others.
  RoutingRecord::Place place(int chunk, int layer, std::size_t tokens);
  /// After the batcher's finish_pass(): those of Batcher::rejected() count no more.
  void take_back(std::span<const RejectedRow> rejected, Batcher& batch, int first_slot,
                 Driver& driver) const;

 private:
  struct Chosen {
    std::vector<std::int32_t> experts;  // [tokens, top_k] at least
    std::vector<float> weights;
  };
  std::size_t index(int chunk, int layer) const {
    return static_cast<std::size_t>(chunk) * numbers_.size() + static_cast<std::size_t>(layer);
  }

  LayerRange layers_;
  std::size_t top_k_;
  int place_;
  int members_;
  std::vector<int> numbers_;    // [layers], -1: dense
  std::vector<char> guesses_;   // [chunks], whether it has any
  std::vector<Chosen> chosen_;  // [chunks, layers]
};

}  // namespace atl
