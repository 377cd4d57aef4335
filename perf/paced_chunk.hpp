#pragma once
// A chunk whose rows carry no values but who they are: they go where a router would send them, are
// regrouped and come back, and are known again. What copying rows takes is left out.

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "compute/across_rows.hpp"
#include "compute/backend.hpp"
#include "compute/cpu/row_order.hpp"
#include "compute/error.hpp"
#include "perf/layers_model.hpp"

namespace atl::perf {

class PacedChunk final : public compute::Chunk {
 public:
  PacedChunk(const compute::BackendOptions& options, int rank)
      : options_(options),
        rank_(rank),
        top_k_(options.shape.top_k),
        row_bytes_(static_cast<std::size_t>(options.shape.hidden) * 2),
        across_bytes_(static_cast<std::size_t>(form().bytes)) {
    compute::HostArena arena(compute::HostArena::Mode::take);
    order_ = compute::RowOrder(options, options.max_chunk_tokens, arena);
    experts_.resize(static_cast<std::size_t>(options.max_chunk_tokens * top_k_));
    reserve(out_, experts_.size(), row_bytes_);
    reserve(back_, experts_.size(), row_bytes_);
    if (options.across) {
      reserve(across_out_, experts_.size(), across_bytes_);
      reserve(across_back_, experts_.size(), row_bytes_);
      forward_ = compute::ForwardOrder(options, static_cast<std::int64_t>(experts_.size()), arena);
    }
    place_buffers();
    reserve_receive(0);
  }

  /// What arrives is what is sent back.
  void reserve_receive(std::int64_t rows) override {
    reserve(in_, static_cast<std::size_t>(rows), row_bytes_);
    receive_capacity = std::max(receive_capacity, rows);
    place_buffers();
  }
  void reserve_experts(const compute::ExpertRoom& /*room*/) override {}  // it shares none
  void reserve_across(const compute::NodeRows& rows, std::int64_t forwarded) override {
    reserve(out_, static_cast<std::size_t>(forwarded), row_bytes_);
    reserve(back_, static_cast<std::size_t>(forwarded), row_bytes_);
    reserve(across_in_, static_cast<std::size_t>(rows.arrived), across_bytes_);
    reserve(across_done_, static_cast<std::size_t>(rows.arrived_returns), row_bytes_);
    const auto here = static_cast<std::size_t>(rows.own_rows + rows.arrived);
    if (forward_.returns.size() < here) {
      compute::HostArena arena(compute::HostArena::Mode::take);
      forward_ = compute::ForwardOrder(options_, 2 * static_cast<std::int64_t>(here), arena);
    }
    place_buffers();
  }

  void route(const LayersModel& model, int layer, compute::RouteTo to) {
    const compute::ExpertPlaces& places = options_.part.places_of(layer);
    const auto num_tokens = static_cast<std::int64_t>(tokens.size());
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      model.experts_of(tokens[static_cast<std::size_t>(t)], layer,
                       std::span(experts_).subspan(static_cast<std::size_t>(t * top_k_),
                                                   static_cast<std::size_t>(top_k_)));
      compute::choose_replicas(places.table(), experts_.data() + t * top_k_, top_k_,
                               static_cast<int>(t), order_.chosen.data() + t * top_k_);
    }
    order_.count(places, num_tokens, top_k_, *this);
    to_ = to;
    if (to == compute::RouteTo::experts) {
      order_.for_experts(places, num_tokens, top_k_);
      for (std::int64_t i = 0; i < num_tokens * top_k_; ++i) {
        stamp(at(out_, order_.slots[static_cast<std::size_t>(i)], row_bytes_), {rank_, i / top_k_});
      }
      return;
    }
    order_.for_nodes(places, num_tokens, top_k_);
    for (std::int64_t t = 0; t < num_tokens; ++t) {
      order_.for_each_node(places, t, top_k_, [&](std::int32_t node, std::int32_t sent) {
        std::byte* row = at(across_out_, sent, across_bytes_);
        stamp(row, {rank_, t});
        order_.write_places(places, t, top_k_, node, form().places_of(row));
      });
    }
  }

  void regroup(const compute::NodeRows& rows) {
    forward_.regroup([&](std::int64_t q) { return form().places_of(forwarded(rows, q)); },
                     rows.own_rows + rows.arrived, top_k_, order_.next_slot);
    for (std::int64_t i = 0; i < (rows.own_rows + rows.arrived) * top_k_; ++i) {
      const std::int32_t slot = forward_.slots[static_cast<std::size_t>(i)];
      if (slot >= 0) stamp(at(out_, slot, row_bytes_), stamp_of(forwarded(rows, i / top_k_)));
    }
  }

  /// An expert gives back what it got.
  void compute(std::span<const compute::RowBlock> blocks) {
    for (const compute::RowBlock& block : blocks) {
      if (block.in == block.out) continue;
      for (int i = 0; i < block.num_rows; ++i) {
        const std::size_t offset = static_cast<std::size_t>(i) * row_bytes_;
        stamp(static_cast<std::byte*>(block.out) + offset,
              stamp_of(static_cast<const std::byte*>(block.in) + offset));
      }
    }
  }

  void fold(const compute::NodeRows& rows) {
    forward_.fold(rows, top_k_);
    for (std::int64_t q = 0; q < rows.own_rows + rows.arrived; ++q) {
      std::int64_t to = forward_.returns[static_cast<std::size_t>(q)];
      const bool sum = forward_.has_all(q, top_k_);
      for (int j = 0; j < top_k_; ++j) {
        const std::int32_t slot = forward_.slots[static_cast<std::size_t>(q * top_k_ + j)];
        if (slot < 0) continue;
        stamp(at(q < rows.own_rows ? across_back_ : across_done_, to, row_bytes_),
              stamp_of(at(back_, slot, row_bytes_)));
        if (!sum) ++to;
      }
    }
  }

  void check() const {
    const auto& returned = to_ == compute::RouteTo::experts ? back_ : across_back_;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(tokens.size()) * top_k_; ++i) {
      const std::int32_t slot = order_.slots[static_cast<std::size_t>(i)];
      if (slot < 0) continue;
      const Stamp found = stamp_of(returned.data() + static_cast<std::size_t>(slot) * row_bytes_);
      require(found == Stamp{rank_, i / top_k_},
              "a row of token {} came back as token {} of rank {}", i / top_k_, found[1], found[0]);
    }
  }

 private:
  using Bytes = std::vector<std::byte>;
  using Stamp = std::array<std::int64_t, 2>;  // rank, token

  compute::AcrossRow form() const {
    return compute::across_row(options_.shape.hidden, DType::bfloat16, top_k_);
  }
  static void reserve(Bytes& bytes, std::size_t rows, std::size_t row) {
    if (rows * row > bytes.size()) bytes.resize(std::max(rows * row, 2 * bytes.size()));
  }
  static std::byte* at(Bytes& bytes, std::int64_t row, std::size_t row_bytes) {
    return bytes.data() + static_cast<std::size_t>(row) * row_bytes;
  }
  const std::byte* forwarded(const compute::NodeRows& rows, std::int64_t q) {
    return q < rows.own_rows ? at(across_out_, rows.own_first + q, across_bytes_)
                             : at(across_in_, q - rows.own_rows, across_bytes_);
  }
  // At both ends of a row, so that none is cut short.
  void stamp(std::byte* row, const Stamp& who) const {
    std::memcpy(row, who.data(), sizeof(who));
    std::memcpy(row + row_bytes_ - sizeof(who), who.data(), sizeof(who));
  }
  Stamp stamp_of(const std::byte* row) const {
    Stamp first, last;
    std::memcpy(first.data(), row, sizeof(first));
    std::memcpy(last.data(), row + row_bytes_ - sizeof(last), sizeof(last));
    require(first == last, "a row of token {} of rank {} ends as token {} of rank {}", first[1],
            first[0], last[1], last[0]);
    return first;
  }
  void place_buffers() {
    dispatch_send = out_.data();
    combine_recv = back_.data();
    dispatch_recv = combine_send = in_.data();
    across_send = across_out_.data();
    across_recv = across_in_.data();
    across_done = across_done_.data();
    across_return = across_back_.data();
  }

  const compute::BackendOptions options_;
  std::int64_t rank_;
  int top_k_;
  std::size_t row_bytes_, across_bytes_;
  compute::RowOrder order_;
  compute::ForwardOrder forward_;
  compute::RouteTo to_ = compute::RouteTo::experts;
  std::vector<std::int32_t> experts_;  // [tokens, top_k]
  Bytes out_, in_, back_, across_out_, across_in_, across_done_, across_back_;
};

}  // namespace atl::perf
