#pragma once
// A backend whose arithmetic is a timer: an operation takes its rows times what a row costs, on a
// clock of its own, while rows move for real. On a machine with fewer cores than ranks an idle
// rank's core serves another, so that skew, bubbles and stragglers vanish unless arithmetic is
// paced so. With costs of zero the arithmetic is left out.

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "app/model/model_config.hpp"
#include "compute/backend.hpp"
#include "compute/clock.hpp"
#include "compute/error.hpp"
#include "perf/pass_rows.hpp"

namespace atl::perf {

/// Seconds.
struct Pace {
  double per_token = 0;       ///< one layer's attention, router and merge
  double per_expert_row = 0;  ///< one row through one expert
};

/// The same in FLOPs of matrices.
inline Pace flops_of(const ModelShape& shape) {
  const double row = 4.0 * shape.hidden * shape.moe_intermediate;
  const double layers = gemm_flops_per_token(shape) - 2.0 * shape.hidden * shape.vocab;
  return {layers / shape.num_layers - shape.top_k * row, row};
}

class PacedBackend final : public compute::Backend {
 public:
  /// Chunks are numbered as they are made, from 0 again after `options.num_chunks`. `rows` says
  /// what the router would, and outlives this.
  PacedBackend(const compute::BackendOptions& options, const PassRows& rows, int rank)
      : options_(options), rows_(rows), rank_(static_cast<std::size_t>(rank)) {}

  /// Holds for operations that are enqueued from now on.
  void set_pace(const Pace& pace) { pace_ = pace; }

  std::string description() const override { return "paced: arithmetic is a timer"; }
  void load_weight(compute::Weight, int, int, const HostTensor&) override {}
  void finish_loading() override {}

  /// Throws Error unless every row of the last layer that ran came back from its expert's rank as
  /// it was sent, in the chunk of this number that was made last and still lives.
  void check(int chunk, const ExpertRows& rows) const {
    made_[made_.size() - static_cast<std::size_t>(options_.num_chunks - chunk)]->check(rows);
  }

  std::unique_ptr<compute::Chunk> make_chunk() override {
    const int index = static_cast<int>(made_.size()) % options_.num_chunks;
    auto chunk = std::make_unique<PacedChunk>(options_, rank_, index);
    made_.push_back(chunk.get());
    return chunk;
  }

  compute::Event embed(compute::Chunk&) override { return enqueue(0); }
  // The first part of an operation takes its whole time.
  compute::Event attention(compute::Chunk& chunk, int, compute::AttentionPart part) override {
    using compute::AttentionPart;
    const bool first = part == AttentionPart::all || part == AttentionPart::project;
    return enqueue(first ? pace_.per_token * static_cast<double>(chunk.tokens.size()) : 0);
  }
  compute::Event mlp(compute::Chunk&, int) override { return enqueue(0); }
  compute::Event route(compute::Chunk& chunk, int layer) override {
    auto& paced = static_cast<PacedChunk&>(chunk);
    const auto counts = rows_.counts(layer, paced.index, rank_);
    for (std::size_t e = 0; e < counts.size(); ++e) {
      paced.counts[static_cast<std::size_t>(options_.part.send_order[e])] = counts[e];
    }
    return enqueue(0);
  }
  compute::Event experts(compute::Chunk&, int, std::span<const compute::RowBlock> blocks,
                         compute::ExpertPart part) override {
    if (part == compute::ExpertPart::down) return enqueue(0);
    std::int64_t rows = 0;
    for (const compute::RowBlock& block : blocks) rows += block.num_rows;
    return enqueue(pace_.per_expert_row * static_cast<double>(rows));
  }
  compute::Event merge(compute::Chunk&, int) override { return enqueue(0); }
  compute::Event sample(compute::Chunk&, std::span<const std::int32_t> rows,
                        std::span<const SamplingRequest>, SampledToken* out) override {
    std::fill_n(out, rows.size(), SampledToken{});
    return enqueue(0);
  }
  compute::Event logits(compute::Chunk&, std::span<const std::int32_t>, float*) override {
    fail("a paced backend has no logits");
  }
  compute::Event logprobs(compute::Chunk&, std::span<const std::int32_t>,
                          std::span<const std::int32_t>, float*) override {
    fail("a paced backend has no log-probabilities");
  }
  compute::Event save_x(const compute::Chunk&, float*) override {
    fail("a paced backend has no activations");
  }
  compute::Event save_choices(const compute::Chunk&, std::int32_t*, float*) override {
    fail("a paced backend chooses no experts");
  }
  compute::Event save_kv(int, std::span<const std::int32_t>, int, int, void*, void*) override {
    fail("a paced backend has no cache");
  }
  compute::Event load_kv(int, std::span<const std::int32_t>, int, int, const void*,
                         const void*) override {
    fail("a paced backend has no cache");
  }

  void start() override {}
  bool done(compute::Event event) override { return now_seconds() >= interval(event).end; }
  bool wait(compute::Event event, int timeout_us) override {
    sleep_until(std::min(interval(event).end, now_seconds() + timeout_us * 1e-6));
    return done(event);
  }
  void finish(compute::Event event) override { sleep_until(interval(event).end); }
  compute::Interval interval(compute::Event event) const override {
    return intervals_[event % most_intervals];
  }
  Memory memory() const override { return {}; }

 private:
  static constexpr std::size_t most_intervals = 4096;

  struct PacedChunk final : compute::Chunk {
    PacedChunk(const compute::BackendOptions& options, std::size_t rank, int index_of_chunk)
        : index(index_of_chunk), words(static_cast<std::size_t>(options.shape.hidden) / 2) {
      const auto rows = static_cast<std::size_t>(options.max_chunk_tokens) *
                        static_cast<std::size_t>(options.shape.top_k);
      out.resize((rows + 1) * words);
      back.resize(out.size());
      for (std::size_t i = 0; i < out.size(); ++i) {
        out[i] = static_cast<std::uint32_t>(rank) * 2654435761U +
                 static_cast<std::uint32_t>(index) * 40503U + static_cast<std::uint32_t>(i) * 97U;
      }
      counts.resize(static_cast<std::size_t>(options.shape.num_experts));
      packed_counts = counts;
      dispatch_send = out.data();
      combine_recv = back.data();
      reserve_receive(0);
    }
    /// What arrives is what is sent back.
    void reserve_receive(std::int64_t rows) override {
      if (static_cast<std::size_t>(rows + 1) * words > in.size()) {
        in.resize(static_cast<std::size_t>(rows + 1) * words);
      }
      dispatch_recv = combine_send = in.data();
      receive_capacity = static_cast<std::int64_t>(in.size() / words) - 1;
    }
    void check(const ExpertRows& rows) const {
      comm::RowMove move(rows.num_ranks());
      rows.plan_sends(move);
      for (std::size_t peer = 0; peer < move.send_counts.size(); ++peer) {
        const auto first =
            static_cast<std::ptrdiff_t>(static_cast<std::size_t>(move.send_offsets[peer]) * words);
        const auto count =
            static_cast<std::ptrdiff_t>(static_cast<std::size_t>(move.send_counts[peer]) * words);
        require(std::equal(out.begin() + first, out.begin() + first + count, back.begin() + first),
                "rows that were sent to rank {} came back altered", peer);
      }
    }

    int index;
    std::size_t words;                 // of one row
    std::vector<std::int32_t> counts;  // in sending order
    std::vector<std::uint32_t> out, in, back;
  };

  compute::Event enqueue(double seconds) {
    const double begin = std::max(now_seconds(), free_at_);
    free_at_ = begin + seconds;
    const compute::Event event = next_++;
    intervals_[event % most_intervals] = {begin, free_at_};
    return event;
  }

  static void sleep_until(double time) {
    const double left = time - now_seconds();
    if (left > 0) std::this_thread::sleep_for(std::chrono::duration<double>(left));
  }

  compute::BackendOptions options_;
  const PassRows& rows_;
  std::size_t rank_;
  Pace pace_;
  std::vector<const PacedChunk*> made_;
  compute::Event next_ = 1;
  double free_at_ = 0;  // when what is enqueued will be done
  std::vector<compute::Interval> intervals_ = std::vector<compute::Interval>(most_intervals);
};

}  // namespace atl::perf
