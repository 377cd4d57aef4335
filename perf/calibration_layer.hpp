#pragma once
// One layer on this machine's backend, for calibration: attention of a prompt's rows, experts with
// even and uneven rows, row operations, and arithmetic beside messages. All ranks do the same at
// once, and the slowest one's time counts.

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "app/plan/step_costs.hpp"
#include "app/run/back_off.hpp"
#include "comm/lane.hpp"
#include "perf/layers_model.hpp"
#include "perf/machine.hpp"

namespace atl::perf {

/// Median seconds of `run`, of the slowest rank, all ranks at once.
template <class Run>
double median_seconds(const comm::Communicator& world, int tries, const Run& run) {
  std::vector<double> seconds;
  for (int i = 0; i <= tries; ++i) {  // the first warms up
    world.barrier();
    const double begin = now_seconds();
    run();
    const double mine = now_seconds() - begin;
    const double slowest = over_ranks(world, mine, comm::Communicator::Reduce::max);
    if (i > 0) seconds.push_back(slowest);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

class CalibrationLayer {
 public:
  static constexpr int hidden = 512, heads = 8, head_dim = 64, num_experts = 16;

  /// Room for so many rows at once, and for a sequence of so many tokens. Its experts are more
  /// than caches hold, unless `small`.
  CalibrationLayer(const comm::Communicator& world, int tokens, int context, bool small)
      : world_(world), tokens_(static_cast<std::size_t>(tokens)), context_(context) {
    LayersOptions options;
    options.layers = 1;
    options.hidden = hidden;
    options.intermediate = small ? 64 : 1024;
    options.experts = num_experts;
    options.sequence = context + tokens;
    const LayersModel model(options, one_node(1));
    options_.shape = model.shape();
    options_.part = compute::whole_model(model.shape());
    options_.num_pages = (context + tokens) / options_.page_tokens + 1;
    options_.max_chunk_tokens = tokens;
    backend_ = compute::make_cpu_backend(options_);
    model.load(*backend_, options_.part);
    chunk_ = backend_->make_chunk();
    pages_.resize(static_cast<std::size_t>(options_.num_pages));
    std::iota(pages_.begin(), pages_.end(), 0);
    fill();
  }

  const compute::BackendOptions& options() const { return options_; }

  /// Of attention without its projections.
  double attention_seconds(int tokens, int context) {
    choose(tokens, context);
    backend_->embed(*chunk_);
    backend_->finish(backend_->attention(*chunk_, 0, compute::AttentionPart::project));
    const auto attend = [&] {
      backend_->finish(backend_->attention(*chunk_, 0, compute::AttentionPart::attend));
    };
    const double once = median_seconds(world_, 1, attend);
    const int runs = std::clamp(static_cast<int>(0.02 / once), 1, 500);
    return median_seconds(world_, 3, [&] { repeat(runs, attend); }) / runs;
  }

  /// Of the experts' step with so many rows for each.
  double experts_seconds(const std::vector<std::int64_t>& rows) {
    give_rows(rows);
    const auto experts = [&] { backend_->finish(backend_->experts(*chunk_, 0, blocks_)); };
    const double seconds = median_seconds(world_, 3, experts);
    for (const compute::RowBlock& block : blocks_) {  // all their rows are alike
      const auto* out = static_cast<const std::uint16_t*>(block.out);
      const auto* last = out + static_cast<std::ptrdiff_t>(block.num_rows - 1) * hidden;
      require(std::equal(out, out + hidden, last) && std::any_of(out, out + hidden, not_zero),
              "experts gave other results for the same row");
    }
    return seconds;
  }

  /// Bytes per second of rows that are read, summed and written, as StepCosts counts them.
  double row_rate(int tokens) {
    choose(tokens, 0);
    backend_->embed(*chunk_);
    backend_->finish(backend_->route(*chunk_, 0));
    const auto rows = [&] {
      backend_->embed(*chunk_);
      backend_->finish(backend_->merge(*chunk_, 0));
    };
    const double width = hidden, element = 2, stream = sizeof(float);
    const double of_embed = width * (element + stream);
    const double of_merge = width * (options_.shape.top_k * element + 2 * stream);
    return tokens * (of_embed + of_merge) / median_seconds(world_, 9, rows);
  }

  /// From handing an operation to a queue that sleeps to its begin.
  double launch_seconds() {
    choose(1, 0);
    std::vector<double> seconds;
    for (int i = 0; i < 30; ++i) {
      const double until = now_seconds() + 200e-6;  // then the queue's thread sleeps
      while (now_seconds() < until) sched_yield();
      const double begin = now_seconds();
      const compute::Event event = backend_->embed(*chunk_);
      backend_->start();
      while (!backend_->done(event)) sched_yield();
      seconds.push_back(backend_->interval(event).begin - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    return over_ranks(world_, seconds[seconds.size() / 2], comm::Communicator::Reduce::max);
  }

  /// Seconds of arithmetic that are lost for each byte that a rank sends or receives meanwhile:
  /// experts' steps, one after the other, alone and beside messages of `bytes` to and from two
  /// partners. Half of the arithmetic's time has messages.
  double lost_per_byte(int to, int from, std::int64_t bytes, bool shares_cores, double enough_s) {
    give_rows(std::vector<std::int64_t>(num_experts, 8));
    const auto experts = [&] { backend_->finish(backend_->experts(*chunk_, 0, blocks_)); };
    const int steps =
        std::clamp(static_cast<int>(enough_s / median_seconds(world_, 3, experts)), 4, 1000);
    constexpr std::size_t row_bytes = 16384;
    const auto rows = static_cast<int>(std::max<std::int64_t>(1, bytes / row_bytes));
    comm::LaneOptions lane_options;
    lane_options.transport = comm::TransportKind::pairwise;
    lane_options.row_bytes = row_bytes;
    comm::Lane lane(world_, lane_options);
    comm::RowMove move(world_.size());
    move.send_counts[static_cast<std::size_t>(to)] = rows;
    move.recv_counts[static_cast<std::size_t>(from)] = rows;
    const std::vector<std::byte> out(static_cast<std::size_t>(rows) * row_bytes, std::byte{7});
    std::vector<std::byte> in(out.size());
    const double exchange = median_seconds(world_, 3, [&] {
      lane.start(move, out.data(), in.data());
      while (!lane.test()) sched_yield();
    });
    const int count = std::max(1, static_cast<int>(enough_s / 2 / exchange));
    BackOff back_off(*backend_, shares_cores);
    const auto beside = [&](int exchanges) {
      for (int i = 1; i < steps; ++i) backend_->experts(*chunk_, 0, blocks_);
      const compute::Event last = backend_->experts(*chunk_, 0, blocks_);
      backend_->start();
      for (int i = 0; i < exchanges; ++i) {
        lane.start(move, out.data(), in.data());
        for (back_off.progress(); !lane.test();) back_off.idle(&last, /*messages=*/true);
      }
      for (back_off.progress(); !backend_->done(last);) back_off.idle(&last, /*messages=*/true);
    };
    const double alone = median_seconds(world_, 3, [&] { beside(0); });
    const double both = median_seconds(world_, 3, [&] { beside(count); });
    require(in == out, "rows arrived altered beside arithmetic");
    return std::max(0.0, both - alone) / (2.0 * count * static_cast<double>(out.size()));
  }

 private:
  static bool not_zero(std::uint16_t bits) { return (bits & 0x7fff) != 0; }
  template <class Run>
  static void repeat(int runs, const Run& run) {
    for (int i = 0; i < runs; ++i) run();
  }

  void choose(int tokens, int context) {
    segment_ = {0, tokens, context, pages_.data()};
    chunk_->tokens = std::span(tokens_).first(static_cast<std::size_t>(tokens));
    chunk_->segments = {&segment_, 1};
  }

  /// Fills the cache with one token again and again: values are alike, and so is what all of its
  /// rows make of them, wherever they are.
  void fill() {
    const int step = options_.max_chunk_tokens;
    std::vector<float> x(static_cast<std::size_t>(step * hidden));
    std::vector<float> first, plain(x.size());
    for (int at = 0; at + step <= context_ + step; at += step) {
      choose(step, at);
      backend_->embed(*chunk_);
      backend_->save_x(*chunk_, plain.data());
      backend_->attention(*chunk_, 0);
      backend_->finish(backend_->save_x(*chunk_, x.data()));
      if (at == 0) first = x;
    }
    double most = 0, changed = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(hidden); ++i) {
      const float last = x[x.size() - hidden + i];
      most = std::max<double>(most, std::abs(last - first[i]));
      changed = std::max<double>(changed, std::abs(last - plain[i]));
    }
    require(changed > 0 && most < 0.05 * changed,
            "attention of alike tokens differs by {}, of {} that it adds", most, changed);
  }

  void give_rows(const std::vector<std::int64_t>& rows) {
    const auto all = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    chunk_->reserve_receive(all + static_cast<std::int64_t>(rows.size()) * compute::tile_rows);
    auto* in = static_cast<std::uint16_t*>(chunk_->dispatch_recv);
    auto* out = static_cast<std::uint16_t*>(chunk_->combine_send);
    constexpr std::uint16_t one = 0x3f80;
    std::fill_n(in, all * hidden, one);
    blocks_.clear();
    std::int64_t first = 0;
    for (std::size_t e = 0; e < rows.size(); ++e) {
      if (rows[e] == 0) continue;
      blocks_.push_back({static_cast<std::int32_t>(e), static_cast<std::int32_t>(rows[e]),
                         in + first * hidden, out + first * hidden});
      first += rows[e];
    }
  }

  const comm::Communicator& world_;
  std::vector<std::int32_t> tokens_;
  int context_;
  compute::BackendOptions options_;
  std::unique_ptr<compute::Backend> backend_;
  std::unique_ptr<compute::Chunk> chunk_;
  std::vector<std::int32_t> pages_;
  std::vector<compute::RowBlock> blocks_;
  compute::Segment segment_;
};

}  // namespace atl::perf
