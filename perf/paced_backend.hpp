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
#include "perf/layers_model.hpp"
#include "perf/paced_chunk.hpp"

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
  /// Chunks are numbered as they are made, from 0 again after `options.num_chunks`. `model` says
  /// what the router would, and outlives this.
  PacedBackend(const compute::BackendOptions& options, const LayersModel& model, int rank)
      : options_(options), model_(model), rank_(rank) {}

  /// Holds for operations that are enqueued from now on.
  void set_pace(const Pace& pace) { pace_ = pace; }

  std::string description() const override { return "paced: arithmetic is a timer"; }
  void load_weight(compute::Weight, int, int, const HostTensor&) override {}
  void finish_loading() override {}

  /// Throws Error unless every row of the last layer that ran came back from its expert's rank, in
  /// the chunk of this number that was made last and still lives.
  void check(int chunk) const {
    made_[made_.size() - static_cast<std::size_t>(options_.num_chunks - chunk)]->check();
  }

  std::unique_ptr<compute::Chunk> make_chunk() override {
    const int index = static_cast<int>(made_.size());
    auto chunk = std::make_unique<PacedChunk>(options_of_chunk(options_, index), rank_);
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
  compute::Event shared_expert(compute::Chunk&, int) override { return enqueue(0); }
  compute::Event route(compute::Chunk& chunk, int layer, compute::RouteTo to) override {
    static_cast<PacedChunk&>(chunk).route(model_, layer, to);
    return enqueue(0);
  }
  compute::Event regroup(compute::Chunk& chunk, int, const compute::NodeRows& rows) override {
    static_cast<PacedChunk&>(chunk).regroup(rows);
    return enqueue(0);
  }
  compute::Event fold(compute::Chunk& chunk, int, const compute::NodeRows& rows) override {
    static_cast<PacedChunk&>(chunk).fold(rows);
    return enqueue(0);
  }
  compute::Event experts(compute::Chunk& chunk, int, std::span<const compute::RowBlock> blocks,
                         compute::ExpertPart part) override {
    if (part == compute::ExpertPart::down) return enqueue(0);
    std::int64_t rows = 0;
    for (const compute::RowBlock& block : blocks) rows += block.num_rows;
    static_cast<PacedChunk&>(chunk).compute(blocks);
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
                          std::span<const std::int32_t>, ScoredToken*) override {
    fail("a paced backend has no log-probabilities");
  }
  compute::Event save_x(const compute::Chunk&, float*) override {
    fail("a paced backend has no activations");
  }
  compute::Event save_choices(const compute::Chunk&, std::int32_t*, float*, float*) override {
    fail("a paced backend chooses no experts");
  }
  compute::Event save_kv(int, std::span<const std::int32_t>, int, int, void*, void*) override {
    fail("a paced backend has no cache");
  }
  compute::Event load_kv(int, std::span<const std::int32_t>, int, int, const void*,
                         const void*) override {
    fail("a paced backend has no cache");
  }

  std::int64_t expert_bytes(int) const override { return 0; }
  void read_expert(int, int, std::span<std::byte>) override {
    fail("a paced backend has no weights");
  }
  void write_expert(int, int, std::span<const std::byte>) override {
    fail("a paced backend has no weights");
  }
  void place_experts(int, std::span<const std::int32_t>, const compute::ExpertPlaces&) override {
    fail("a paced backend's experts stay");
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
  const LayersModel& model_;
  int rank_;
  Pace pace_;
  std::vector<const PacedChunk*> made_;
  compute::Event next_ = 1;
  double free_at_ = 0;  // when what is enqueued will be done
  std::vector<compute::Interval> intervals_ = std::vector<compute::Interval>(most_intervals);
};

}  // namespace atl::perf
