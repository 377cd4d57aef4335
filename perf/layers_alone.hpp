#pragma once
// The two halves of a step, each alone: its arithmetic without a message, and its messages without
// arithmetic. Both know from the tokens how many rows go where.

#include <sched.h>

#include <chrono>
#include <list>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "app/batch.hpp"
#include "app/plan/placement.hpp"
#include "app/plan/schedule.hpp"
#include "comm/communicator.hpp"
#include "comm/deadline.hpp"
#include "comm/exchange.hpp"
#include "perf/layers_model.hpp"

namespace atl::perf {

/// How many rows of one step each rank sends to each expert: [layer][chunk][rank][expert].
class StepRows {
 public:
  /// Collective. `batch` holds this rank's chunks of the step.
  StepRows(const comm::Communicator& world, const LayersModel& model, Batcher& batch)
      : chunks_(batch.num_chunks()),
        ranks_(static_cast<std::size_t>(world.size())),
        experts_(static_cast<std::size_t>(model.shape().num_experts)) {
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

  std::int32_t rows(int layer, int chunk, std::size_t from, int expert) const {
    const auto at = static_cast<std::size_t>(layer * chunks_ + chunk) * experts_;
    return rows_[from * per_rank_ + at + static_cast<std::size_t>(expert)];
  }

  /// Rows that `rank` receives from others in one dispatch.
  std::int64_t received(int layer, int chunk, std::size_t rank, const Placement& placement) const {
    std::int64_t sum = 0;
    for (std::size_t from = 0; from < ranks_; ++from) {
      if (from == rank) continue;
      for (const int expert : placement.experts_of[rank]) sum += rows(layer, chunk, from, expert);
    }
    return sum;
  }

 private:
  int chunks_;
  std::size_t ranks_;
  std::size_t experts_;
  std::size_t per_rank_ = 0;
  std::vector<std::int32_t> rows_;
};

/// The arithmetic of one step on this rank, in the order of the schedule.
class ComputeAlone {
 public:
  ComputeAlone(compute::Backend& backend, const comm::Communicator& world, const LayersModel& model,
               const Placement& placement, const StepRows& rows)
      : backend_(backend), shape_(model.shape()) {
    const auto own = static_cast<std::size_t>(world.rank());
    for (int c = 0; c < rows.num_chunks(); ++c) {
      chunks_.push_back(backend.make_chunk());
      std::int64_t most = 0;
      for (int layer = 0; layer < shape_.num_layers; ++layer) {
        most = std::max(most, rows.received(layer, c, own, placement));
      }
      chunks_.back()->reserve_receive(most);
      // Rows that nobody sends: ones, but zero where the routing codes are.
      fill(chunks_.back()->dispatch_recv, most);
      for (int layer = 0; layer < shape_.num_layers; ++layer) {
        blocks_.push_back(make_blocks(*chunks_.back(), layer, c, own, placement, rows));
      }
    }
  }

  /// Seconds of one step; `batch` holds the same tokens as the one that `rows` came from.
  double run(Batcher& batch, const Schedule& schedule) {
    for (int c = 0; c < batch.num_chunks(); ++c) {
      auto& chunk = *chunks_[static_cast<std::size_t>(c)];
      chunk.tokens = batch.chunk(c).tokens;
      chunk.segments = batch.chunk(c).segments;
    }
    const double begin = now_seconds();
    compute::Event last = 0;
    for (const Step& step : schedule.steps) {
      if (is_exchange(step.kind)) continue;
      last = launch(step, batch.chunk(step.chunk));
      backend_.start();
    }
    backend_.finish(last);
    return now_seconds() - begin;
  }

 private:
  void fill(void* rows, std::int64_t count) const {
    constexpr std::uint16_t one = 0x3f80;
    auto* at = static_cast<std::uint16_t*>(rows);
    for (std::int64_t r = 0; r < count; ++r, at += shape_.hidden) {
      std::fill_n(at, shape_.hidden, one);
      std::fill_n(at, shape_.num_experts, std::uint16_t{0});
    }
  }

  std::vector<compute::RowBlock> make_blocks(compute::Chunk& chunk, int layer, int c,
                                             std::size_t own, const Placement& placement,
                                             const StepRows& rows) const {
    const auto row_bytes = static_cast<std::int64_t>(shape_.hidden) * 2;
    const auto at = [row_bytes](void* base, std::int64_t row) {
      return static_cast<std::byte*>(base) + row * row_bytes;
    };
    std::int64_t own_row = 0;  // of the own rank's first expert, in what route packs
    for (int expert = 0; expert < placement.experts_of[own].front(); ++expert) {
      own_row += rows.rows(layer, c, own, expert);
    }
    std::int64_t received = 0;
    std::vector<compute::RowBlock> blocks;
    for (std::size_t e = 0; e < placement.experts_of[own].size(); ++e) {
      for (std::size_t from = 0; from < placement.experts_of.size(); ++from) {
        compute::RowBlock block;
        block.local_expert = static_cast<std::int32_t>(e);
        block.num_rows = rows.rows(layer, c, from, placement.experts_of[own][e]);
        if (block.num_rows == 0) continue;
        const bool here = from == own;
        std::int64_t& next = here ? own_row : received;
        block.in = at(here ? chunk.dispatch_send : chunk.dispatch_recv, next);
        block.out = at(here ? chunk.combine_recv : chunk.combine_send, next);
        next += block.num_rows;
        blocks.push_back(block);
      }
    }
    return blocks;
  }

  compute::Event launch(const Step& step, ChunkBatch& batch) {
    compute::Chunk& chunk = *chunks_[static_cast<std::size_t>(step.chunk)];
    switch (step.kind) {
      case StepKind::embed:
        return backend_.embed(chunk);
      case StepKind::attention:
        return backend_.attention(chunk, step.layer);
      case StepKind::route:
        return backend_.route(chunk, step.layer);
      case StepKind::experts:
        return backend_.experts(
            chunk, step.layer,
            blocks_[static_cast<std::size_t>(step.chunk * shape_.num_layers + step.layer)]);
      case StepKind::merge:
        return backend_.merge(chunk, step.layer);
      case StepKind::head: {
        auto& rows = head_rows_.emplace_back();
        for (const HeadRow& head : batch.head) rows.push_back(head.row);
        auto& how = how_.emplace_back(rows.size());  // greedy, as the requests are
        return backend_.sample(chunk, rows, how, sampled_.emplace_back(rows.size()).data());
      }
      default:
        break;
    }
    fail("internal: no arithmetic in {}", step.name());
  }

  compute::Backend& backend_;
  ModelShape shape_;
  std::vector<std::unique_ptr<compute::Chunk>> chunks_;
  std::vector<std::vector<compute::RowBlock>> blocks_;  // [chunk][layer]
  std::list<std::vector<std::int32_t>> head_rows_;
  std::list<std::vector<SamplingRequest>> how_;
  std::list<std::vector<SampledToken>> sampled_;
};

/// The messages of one step on this rank: every chunk exchanges counters and rows layer by layer,
/// all chunks at once, as in the overlapped schedule when arithmetic takes no time.
class CommunicationAlone {
 public:
  /// Collective.
  CommunicationAlone(const comm::Communicator& world, comm::TransportKind transport,
                     const LayersModel& model, const Placement& placement, const StepRows& rows,
                     std::size_t first_message_bytes)
      : world_(world), layers_(model.shape().num_layers), words_(model.shape().hidden / 2) {
    const int per_peer = std::max(1, placement.most_experts_on_a_rank());
    const auto own = static_cast<std::size_t>(world.rank());
    for (int c = 0; c < rows.num_chunks(); ++c) {
      auto& chunk = *chunks_.emplace_back(std::make_unique<OneChunk>(
          world, transport, static_cast<std::size_t>(words_) * 4, per_peer, first_message_bytes));
      std::int64_t most_out = 0;
      std::int64_t most_in = 0;
      for (int layer = 0; layer < layers_; ++layer) {
        auto& counts = chunk.counts.emplace_back(static_cast<std::size_t>(world.size() * per_peer));
        std::int64_t out = 0;
        for (std::size_t to = 0; to < placement.experts_of.size(); ++to) {
          for (std::size_t e = 0; e < placement.experts_of[to].size(); ++e) {
            const auto n = rows.rows(layer, c, own, placement.experts_of[to][e]);
            counts[to * static_cast<std::size_t>(per_peer) + e] = n;
            out += n;
          }
        }
        most_out = std::max(most_out, out);
        most_in = std::max(most_in, rows.received(layer, c, own, placement));
      }
      const auto size = [this](std::int64_t n) {
        return static_cast<std::size_t>((n + 1) * words_);
      };
      chunk.out.resize(size(most_out));
      chunk.back.resize(size(most_out));
      chunk.in.resize(size(most_in));
      for (std::size_t i = 0; i < chunk.out.size(); ++i) {
        chunk.out[i] = stamp(world.rank(), c, static_cast<std::int64_t>(i));
      }
    }
  }

  /// Seconds of one step.
  double run() {
    const double begin = now_seconds();
    for (auto& chunk : chunks_) chunk->start(0);
    int idle = 0;
    for (bool all_done = false; !all_done;) {
      all_done = true;
      bool progress = false;
      for (auto& chunk : chunks_) {
        if (chunk->layer == layers_) continue;
        progress |= chunk->advance();
        all_done &= chunk->layer == layers_;
      }
      idle = progress ? 0 : idle + 1;
      wait(idle);
    }
    return now_seconds() - begin;
  }

  /// Throws Error unless every row came back from its expert's rank as it was sent.
  void check() const {
    for (const auto& chunk : chunks_) {
      std::size_t row = 0;
      const auto& counts = chunk->counts.back();
      const auto per_peer = counts.size() / static_cast<std::size_t>(world_.size());
      for (std::size_t at = 0; at < counts.size(); ++at) {
        const auto words = static_cast<std::size_t>(counts[at]) * static_cast<std::size_t>(words_);
        const bool own = static_cast<int>(at / per_peer) == world_.rank();
        require(own || std::equal(chunk->out.begin() + static_cast<std::ptrdiff_t>(row),
                                  chunk->out.begin() + static_cast<std::ptrdiff_t>(row + words),
                                  chunk->back.begin() + static_cast<std::ptrdiff_t>(row)),
                "rows that rank {} sent to rank {} came back altered", world_.rank(),
                at / per_peer);
        row += words;
      }
    }
  }

 private:
  struct OneChunk {
    OneChunk(const comm::Communicator& world, comm::TransportKind transport, std::size_t row_bytes,
             int per_peer, std::size_t first_message_bytes)
        : exchange(world, transport, row_bytes, per_peer, first_message_bytes),
          plan(world.size()),
          alone(world.size() == 1) {}

    void start(int at_layer) {
      layer = at_layer;
      stage = StepKind::counts;
      if (layer == static_cast<int>(counts.size())) return;
      std::copy(counts[static_cast<std::size_t>(layer)].begin(),
                counts[static_cast<std::size_t>(layer)].end(), exchange.counts_to().begin());
      exchange.start_counts(out.data());
    }

    bool advance() {
      if (stage == StepKind::counts) {
        if (!exchange.counts_done()) return false;
        if (alone) {
          start(layer + 1);
          return true;
        }
        exchange.plan_rows(plan);
        pending = exchange.dispatch(std::move(plan), out.data(), in.data());
        stage = StepKind::dispatch;
        return true;
      }
      if (!pending.done()) return false;
      plan = exchange.finish(std::move(pending));
      if (stage == StepKind::dispatch) {
        plan.reverse();
        pending = exchange.start(std::move(plan), in.data(), back.data());
        stage = StepKind::combine;
      } else {
        start(layer + 1);
      }
      return true;
    }

    comm::Exchange exchange;
    comm::ExchangePlan plan;
    comm::PendingExchange pending;
    bool alone;
    std::vector<std::vector<std::int32_t>> counts;  // [layer][ranks * per_peer]
    std::vector<std::uint32_t> out, in, back;
    int layer = 0;
    StepKind stage = StepKind::counts;
  };

  static std::uint32_t stamp(int rank, int chunk, std::int64_t at) {
    return static_cast<std::uint32_t>(rank) * 2654435761U +
           static_cast<std::uint32_t>(chunk) * 40503U + static_cast<std::uint32_t>(at) * 97U;
  }

  /// There is nothing else to do: poll, but leave a core that another rank wants.
  static void wait(int idle) {
    constexpr int polls_before_sleep = 200;
    constexpr auto sleep = std::chrono::microseconds(20);
    if (idle > polls_before_sleep) {
      std::this_thread::sleep_for(sleep);
    } else if (idle > 0) {
      sched_yield();
    }
  }

  const comm::Communicator& world_;
  int layers_;
  int words_;  // of one row
  std::vector<std::unique_ptr<OneChunk>> chunks_;
};

}  // namespace atl::perf
