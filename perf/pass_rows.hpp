#pragma once
// How many rows of one pass go where, known from the tokens: what is needed to leave messages out.

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "app/plan/expert_rows.hpp"
#include "app/plan/placement.hpp"
#include "app/run/batcher.hpp"
#include "app/run/chunk_moves.hpp"
#include "comm/communicator.hpp"
#include "perf/layers_model.hpp"

namespace atl::perf {

/// How many rows of one pass each rank sends to each expert: [layer][chunk][rank][expert].
class PassRows {
 public:
  /// Collective. `batch` holds this rank's chunks of the pass.
  PassRows(const comm::Communicator& world, const LayersModel& model, Batcher& batch)
      : chunks_(batch.num_chunks()), experts_(static_cast<std::size_t>(model.shape().num_experts)) {
    std::vector<std::int32_t> mine;
    for (int layer = 0; layer < model.shape().num_layers; ++layer) {
      for (int chunk = 0; chunk < chunks_; ++chunk) {
        std::vector<std::int32_t> counts(experts_);
        model.count_rows(batch.chunk(chunk).tokens, layer, counts);
        mine.insert(mine.end(), counts.begin(), counts.end());
      }
    }
    const auto all = world.gather_vectors(std::span<const std::int32_t>(mine), 0);
    std::string text;
    for (const auto& rank : all) {
      text.append(reinterpret_cast<const char*>(rank.data()), rank.size() * sizeof(rank[0]));
    }
    text = world.broadcast(text, 0);
    const auto* first = reinterpret_cast<const std::int32_t*>(text.data());
    rows_.assign(first, first + text.size() / sizeof(std::int32_t));
    per_rank_ = mine.size();
  }

  int num_chunks() const { return chunks_; }

  /// [experts]: rows that `from` sends to each.
  std::span<const std::int32_t> counts(int layer, int chunk, std::size_t from) const {
    const auto at = static_cast<std::size_t>(layer * chunks_ + chunk) * experts_;
    return std::span(rows_).subspan(from * per_rank_ + at, experts_);
  }
  std::int32_t rows(int layer, int chunk, std::size_t from, int expert) const {
    return counts(layer, chunk, from)[static_cast<std::size_t>(expert)];
  }

  /// Rows that `rank` computes in all layers, where experts have one replica each.
  std::int64_t computed_by(int rank, const Placement& placement) const {
    std::int64_t sum = 0;
    for (std::size_t at = 0; at < rows_.size(); ++at) {
      const auto layer = static_cast<int>(at % per_rank_ / experts_) / chunks_;
      if (placement.of(layer).ranks_of_expert()[at % experts_].front() == rank) sum += rows_[at];
    }
    return sum;
  }

  /// What `rank` knows of a layer's rows once all have told it, by Route::flat.
  ExpertRows known_to(int rank, int layer, int chunk, const LayerPlacement& placement) const {
    std::vector<int> all;
    for (int each = 0; each < placement.num_ranks(); ++each) all.push_back(each);
    ExpertRows known(places_of_members(placement, all), rank);
    std::vector<std::int32_t> told;
    for (const Replica& replica : placement.replicas()) {
      told.push_back(rows(layer, chunk, static_cast<std::size_t>(rank), replica.expert));
    }
    known.packed(told);
    for (int from = 0; from < placement.num_ranks(); ++from) {
      told.clear();
      for (const int expert : placement.experts_of(rank)) {
        told.push_back(rows(layer, chunk, static_cast<std::size_t>(from), expert));
      }
      known.heard_from(from, told);
    }
    return known;
  }

 private:
  int chunks_;
  std::size_t experts_;
  std::size_t per_rank_ = 0;
  std::vector<std::int32_t> rows_;
};

/// A chunk's messages left out: every one is done at once, and rows that nobody sends have arrived.
class NoMessages final : public ChunkMoves {
 public:
  void placed(int) override { fail("a pass without messages has its rows where they are"); }
  NoMessages(const PassRows& rows, const LayersModel& model, const Placement& placement, int rank,
             compute::Chunk& chunk, int index)
      : chunk_(chunk) {
    if (chunk.across_send != nullptr) chunk.reserve_across({}, 0);
    const ModelShape& shape = model.shape();
    if (index >= rows.num_chunks()) return;  // the pass has fewer
    std::vector<ExpertRows> known;
    comm::RowMove move(placement.of(0).num_ranks());
    std::int64_t most = 0;
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      known.push_back(rows.known_to(rank, layer, index, placement.of(layer)));
      known.back().plan_receives(move);
      most = std::max(most, move.rows_received());
    }
    chunk.reserve_receive(most);
    fill(shape, chunk.dispatch_recv, most);
    std::vector<ExpertBlock> blocks;
    for (const ExpertRows& of_layer : known) {
      of_layer.blocks(blocks);
      auto& list = blocks_.emplace_back();
      for (const ExpertBlock& b : blocks) {
        list.push_back(row_block(b, chunk, static_cast<std::size_t>(shape.hidden) * 2));
      }
    }
  }

  void begin(Route) override {}
  void post(const Step&) override {}
  void poll_with(const Step&, comm::Poller&) override {}
  bool done(const Step&) override { return true; }
  /// As if all rows that this rank sends to nodes were for its own.
  compute::NodeRows node_rows() const override {
    compute::NodeRows rows;
    for (const std::int32_t count : chunk_.node_rows) rows.own_rows += count;
    return rows;
  }
  std::span<const compute::RowBlock> blocks(int layer) override {
    last_ = static_cast<std::size_t>(layer);
    return blocks_[last_];
  }
  std::span<const compute::RowBlock> same_blocks() const override { return blocks_[last_]; }
  std::span<const compute::RowBlock> shared_blocks() const override {
    fail("a benchmark without messages shares no experts");
  }
  comm::Awaited awaited(const Step&) const override { return {}; }
  std::size_t most_requests() const override { return 0; }

 private:
  /// Ones, but zero where the routing codes are.
  static void fill(const ModelShape& shape, void* rows, std::int64_t count) {
    constexpr std::uint16_t one = 0x3f80;
    auto* at = static_cast<std::uint16_t*>(rows);
    for (std::int64_t r = 0; r < count; ++r, at += shape.hidden) {
      std::fill_n(at, shape.hidden, one);
      std::fill_n(at, shape.num_experts, std::uint16_t{0});
    }
  }

  compute::Chunk& chunk_;
  std::vector<std::vector<compute::RowBlock>> blocks_;  // [layers]
  std::size_t last_ = 0;                                // layer asked for
};

}  // namespace atl::perf
