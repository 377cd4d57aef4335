#pragma once
// All ranks of a job in one process: each with a backend and a chunk, and rows copied between them
// where the plans say. Every layout and placement can be tried without MPI.

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "app/plan/across_rows.hpp"
#include "app/plan/expert_rows.hpp"
#include "app/plan/placement.hpp"
#include "compute/across_rows.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {

/// On which backend, and how rows get from one's buffers to another's.
struct HowRanksRun {
  std::function<std::unique_ptr<compute::Backend>(const compute::BackendOptions&)> make_backend =
      compute::make_cpu_backend;
  std::function<void(void* to, const void* from, std::size_t bytes)> copy =
      [](void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); };
};

class InProcessRanks {
 public:
  InProcessRanks(const reference::Model& model, const Layout& layout, const Placement& placement,
                 DType dtype, const HowRanksRun& how = {})
      : shape_(model.shape), layout_(layout), placement_(placement), dtype_(dtype), how_(how) {
    for (int rank = 0; rank < layout.num_ranks(); ++rank) {
      Rank& one = ranks_.emplace_back();
      compute::BackendOptions options;
      options.shape = shape_;
      options.dtype = dtype;
      options.part = placement.part_of(rank, shape_, layout);
      options.num_pages = 8;
      options.max_chunk_tokens = 64;
      options.across = layout.num_nodes() > 1;
      one.backend = how_.make_backend(options);
      load(model, options.part, *one.backend);
      one.chunk = one.backend->make_chunk();
    }
  }

  /// x [T, H] of each rank's sequence after all layers.
  std::vector<std::vector<float>> run(const std::vector<std::vector<std::int32_t>>& tokens,
                                      compute::RouteTo to) {
    for (std::size_t r = 0; r < ranks_.size(); ++r) start(ranks_[r], tokens[r]);
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      for (Rank& rank : ranks_) {
        rank.backend->attention(*rank.chunk, layer);
        finish(rank, shape_.is_dense(layer) ? rank.backend->mlp(*rank.chunk, layer)
                                            : rank.backend->route(*rank.chunk, layer, to));
      }
      if (shape_.is_dense(layer)) continue;
      for (Rank& rank : ranks_) {
        if (shape_.has_shared_expert())
          finish(rank, rank.backend->shared_expert(*rank.chunk, layer));
      }
      if (to == compute::RouteTo::nodes) {
        through_nodes(layer);
      } else {
        through_experts(layer, Share::exchange);
      }
      for (Rank& rank : ranks_) finish(rank, rank.backend->merge(*rank.chunk, layer));
    }
    std::vector<std::vector<float>> all;
    for (Rank& rank : ranks_) {
      auto& x =
          all.emplace_back(rank.chunk->tokens.size() * static_cast<std::size_t>(shape_.hidden));
      if (!x.empty()) finish(rank, rank.backend->save_x(*rank.chunk, x.data()));
    }
    return all;
  }

  /// Rows carried between nodes in the last run, on the way out.
  std::int64_t rows_across() const { return rows_across_; }

 private:
  struct Rank {
    std::unique_ptr<compute::Backend> backend;
    std::unique_ptr<compute::Chunk> chunk;
    compute::Segment segment;
    std::vector<std::int32_t> pages{0, 1};
    std::vector<std::int32_t> node_counts;
  };

  void load(reference::Model model, const compute::Part& part, compute::Backend& backend) {
    compute::for_each_weight(
        shape_, part, [&](const compute::WeightInfo& info, int expert, int local_expert) {
          const auto bytes = encode(weight_values(model, info, expert), dtype_);
          backend.load_weight(info.id, info.layer, local_expert,
                              {bytes.data(), dtype_, info.rows, info.cols});
        });
    backend.finish_loading();
  }

  void start(Rank& rank, const std::vector<std::int32_t>& tokens) {
    rows_across_ = 0;
    rank.chunk->tokens = tokens;
    rank.segment = {0, static_cast<std::int32_t>(tokens.size()), 0, rank.pages.data()};
    rank.chunk->segments = {&rank.segment, tokens.empty() ? 0U : 1U};
    finish(rank, rank.backend->embed(*rank.chunk));
  }

  static void finish(Rank& rank, compute::Event event) { rank.backend->finish(event); }

  /// Carries rows of `bytes` as the moves of a group's members say.
  template <class Out, class In>
  void carry(const std::vector<int>& group, const std::vector<comm::RowMove>& moves,
             std::size_t bytes, const Out& out, const In& in) {
    for (std::size_t a = 0; a < group.size(); ++a) {
      for (std::size_t b = 0; b < group.size(); ++b) {
        const int count = moves[a].send_counts[b];
        ASSERT_EQ(count, moves[b].recv_counts[a]) << "from " << group[a] << " to " << group[b];
        if (count == 0) continue;
        how_.copy(static_cast<std::byte*>(in(rank_of(group[b]))) +
                      static_cast<std::size_t>(moves[b].recv_offsets[a]) * bytes,
                  static_cast<const std::byte*>(out(rank_of(group[a]))) +
                      static_cast<std::size_t>(moves[a].send_offsets[b]) * bytes,
                  static_cast<std::size_t>(count) * bytes);
        if (layout_.node_of(group[a]) != layout_.node_of(group[b])) rows_across_ += count;
      }
    }
  }

  compute::Chunk& rank_of(int rank) { return *ranks_[static_cast<std::size_t>(rank)].chunk; }
  std::size_t row_bytes() const {
    return static_cast<std::size_t>(shape_.hidden) * size_of(dtype_);
  }

  void through_experts(int layer, Share share) {
    for (const auto& group : layout_.of(share).members) {
      std::vector<ExpertRows> rows;
      std::vector<comm::RowMove> moves;
      for (std::size_t m = 0; m < group.size(); ++m) {
        const Rank& rank = ranks_[static_cast<std::size_t>(group[m])];
        rows.emplace_back(places_of_members(placement_.of(layer), group), static_cast<int>(m));
        rows.back().packed(share == Share::exchange ? rank.chunk->packed_counts
                                                    : std::span(rank.node_counts));
        rows.back().plan_sends(moves.emplace_back(static_cast<int>(group.size())));
      }
      for (std::size_t m = 0; m < group.size(); ++m) {
        for (std::size_t from = 0; from < group.size(); ++from) {
          if (from == m) continue;
          rows[m].heard_from(static_cast<int>(from), rows[from].told_to(static_cast<int>(m)));
        }
        rows[m].plan_receives(moves[m]);
        rank_of(group[m]).reserve_receive(moves[m].rows_received());
      }
      using compute::Chunk;
      carry(
          group, moves, row_bytes(), [](Chunk& chunk) { return chunk.dispatch_send; },
          [](Chunk& chunk) { return chunk.dispatch_recv; });
      for (std::size_t m = 0; m < group.size(); ++m) compute_blocks(group[m], layer, rows[m]);
      for (comm::RowMove& move : moves) move.reverse();
      carry(
          group, moves, row_bytes(), [](Chunk& chunk) { return chunk.combine_send; },
          [](Chunk& chunk) { return chunk.combine_recv; });
    }
  }

  void compute_blocks(int rank, int layer, const ExpertRows& rows) {
    Rank& one = ranks_[static_cast<std::size_t>(rank)];
    std::vector<ExpertBlock> blocks;
    rows.blocks(blocks);
    std::vector<compute::RowBlock> placed;
    for (const ExpertBlock& block : blocks) {
      placed.push_back(row_block(block, *one.chunk, row_bytes()));
    }
    finish(one, one.backend->experts(*one.chunk, layer, placed));
  }

  void through_nodes(int layer) {
    const auto form = compute::across_row(shape_.hidden, dtype_, shape_.top_k);
    std::vector<AcrossRows> rows;
    for (int rank = 0; rank < layout_.num_ranks(); ++rank) {
      rows.emplace_back(placement_.of(layer), layout_, rank);
      rows.back().packed(rank_of(rank));
    }
    for (const auto& rail : layout_.of(Share::rail).members) tell(rail, rows);
    for (int rank = 0; rank < layout_.num_ranks(); ++rank) {
      const AcrossRows& mine = rows[static_cast<std::size_t>(rank)];
      rank_of(rank).reserve_across(mine.node_rows(), mine.forwarded());
    }
    using compute::Chunk;
    for (const auto& rail : layout_.of(Share::rail).members) {
      std::vector<comm::RowMove> moves;
      for (const int rank : rail) {
        auto& move = moves.emplace_back(static_cast<int>(rail.size()));
        rows[static_cast<std::size_t>(rank)].plan_sends(move);
        rows[static_cast<std::size_t>(rank)].plan_receives(move);
      }
      carry(
          rail, moves, static_cast<std::size_t>(form.bytes),
          [](Chunk& chunk) { return chunk.across_send; },
          [](Chunk& chunk) { return chunk.across_recv; });
    }
    const std::int64_t rows_out = rows_across_;
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      const auto counts = rows[r].node_counts();
      ranks_[r].node_counts.assign(counts.begin(), counts.end());
      finish(ranks_[r], ranks_[r].backend->regroup(*ranks_[r].chunk, layer, rows[r].node_rows()));
    }
    through_experts(layer, Share::node);
    for (std::size_t r = 0; r < ranks_.size(); ++r) {
      finish(ranks_[r], ranks_[r].backend->fold(*ranks_[r].chunk, layer, rows[r].node_rows()));
    }
    for (const auto& rail : layout_.of(Share::rail).members) {
      std::vector<comm::RowMove> moves;
      for (const int rank : rail) {
        rows[static_cast<std::size_t>(rank)].plan_return(
            moves.emplace_back(static_cast<int>(rail.size())));
      }
      carry(
          rail, moves, row_bytes(), [](Chunk& chunk) { return chunk.across_done; },
          [](Chunk& chunk) { return chunk.across_return; });
    }
    rows_across_ = rows_out;
  }

  void tell(const std::vector<int>& rail, std::vector<AcrossRows>& rows) {
    for (std::size_t from = 0; from < rail.size(); ++from) {
      const AcrossRows& teller = rows[static_cast<std::size_t>(rail[from])];
      for (int node = 0; node < layout_.num_nodes(); ++node) {
        if (node == layout_.node_of(rail[from])) continue;
        const int to = layout_.receiver(rail[from], node);
        std::vector<std::int32_t> counters(teller.num_told(node));
        teller.tell(node, counters);
        ASSERT_EQ(rail[static_cast<std::size_t>(teller.member_of_node(node))], to);
        rows[static_cast<std::size_t>(to)].heard_from(static_cast<int>(from), counters);
      }
    }
  }

  ModelShape shape_;
  Layout layout_;
  Placement placement_;
  DType dtype_;
  HowRanksRun how_;
  std::vector<Rank> ranks_;
  std::int64_t rows_across_ = 0;
};

}  // namespace atl::testing
