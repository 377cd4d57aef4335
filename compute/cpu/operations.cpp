#include "compute/cpu/operations.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "compute/cpu/kv.hpp"
#include "compute/error.hpp"

namespace atl::compute {

void CpuLayers::execute(const CpuOp& op) {
  if (op.chunk != nullptr && op.chunk->tokens.empty() && op.kind != CpuOp::Kind::route &&
      op.kind != CpuOp::Kind::experts) {
    return;
  }
  switch (op.kind) {
    case CpuOp::Kind::embed:
      return embed(*op.chunk);
    case CpuOp::Kind::attention:
      return attention(*op.chunk, op.layer, op.attention_part);
    case CpuOp::Kind::mlp:
      return mlp(*op.chunk, op.layer);
    case CpuOp::Kind::route:
      return route(*op.chunk, op.layer);
    case CpuOp::Kind::experts:
      return experts(*op.chunk, op.layer, op.blocks, op.expert_part);
    case CpuOp::Kind::merge:
      return merge(*op.chunk);
    case CpuOp::Kind::sample:
      return sample(*op.chunk, op.rows, op.how, op.sampled);
    case CpuOp::Kind::logits:
      return logits(*op.chunk, op.rows, op.out);
    case CpuOp::Kind::logprobs:
      return logprobs(*op.chunk, op.rows, op.targets, op.out);
    case CpuOp::Kind::save_x:
      std::memcpy(
          op.x, op.chunk->memory.x.data(),
          op.chunk->tokens.size() * static_cast<std::size_t>(shape_.hidden) * sizeof(float));
      return;
    case CpuOp::Kind::save_choices: {
      const auto pairs = static_cast<std::ptrdiff_t>(op.chunk->num_tokens() * shape_.top_k);
      std::copy_n(op.chunk->memory.experts.begin(), pairs, op.experts);
      std::copy_n(op.chunk->memory.weights.begin(), pairs, op.out);
      return;
    }
    case CpuOp::Kind::save_kv:
    case CpuOp::Kind::load_kv:
      return move_kv(op);
    case CpuOp::Kind::host_task:
      return (*op.task)();
  }
}

void CpuLayers::norm(const CpuChunk& chunk, const AlignedBuffer& weight) {
  const int width = shape_.hidden;
  parallel_ranges(options_.num_threads, chunk.num_tokens(), grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    kernels_.rms_norm(x_row(chunk, begin), weight.as<float>(), shape_.rms_eps,
                                      row(work_.h, begin, width), end - begin, width);
                  });
}

void CpuLayers::embed(CpuChunk& chunk) {
  const int width = shape_.hidden;
  for (std::int64_t t = 0; t < chunk.num_tokens(); ++t) {
    const std::int32_t token = chunk.tokens[static_cast<std::size_t>(t)];
    require(token >= 0 && token < shape_.vocab,
            "cannot embed token {} (the vocabulary has ids 0 to {}); check the request", token,
            shape_.vocab - 1);
    kernels_.to_float(row(embedding_, token, width), x_row(chunk, t), width);
  }
}

void CpuLayers::route(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  norm(chunk, weights.ffn_norm);
  gemm_->run(weights.router, work_.h.data(), chunk.num_tokens(), chunk.memory.router_logits.data(),
             Finish::float32);
  if (chunk.forced.experts == nullptr) {
    choose(chunk);
  } else {
    force(chunk);
  }
  pack(chunk);
}

void CpuLayers::choose(CpuChunk& chunk) {
  const std::int64_t num_tokens = chunk.num_tokens();
  const int num_experts = shape_.num_experts;
  const int top_k = shape_.top_k;
  parallel_ranges(options_.num_threads, num_tokens, grain_rows(std::int64_t{16} * num_experts),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      kernels_.top_k(chunk.memory.router_logits.data() + t * num_experts,
                                     num_experts, top_k, shape_.norm_topk_prob,
                                     chunk.memory.experts.data() + t * top_k,
                                     chunk.memory.weights.data() + t * top_k);
                    }
                  });
}

/// The router computes its logits also where weights are given: replaying costs what routing does.
void CpuLayers::force(CpuChunk& chunk) {
  const std::int64_t num_tokens = chunk.num_tokens();
  const int num_experts = shape_.num_experts;
  const int top_k = shape_.top_k;
  const std::int64_t pairs = num_tokens * top_k;
  std::copy_n(chunk.forced.experts, pairs, chunk.memory.experts.begin());
  if (chunk.forced.weights != nullptr) {
    std::copy_n(chunk.forced.weights, pairs, chunk.memory.weights.begin());
    return;
  }
  parallel_ranges(options_.num_threads, num_tokens, grain_rows(std::int64_t{16} * num_experts),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      kernels_.weights_of(chunk.memory.router_logits.data() + t * num_experts,
                                          num_experts, top_k, shape_.norm_topk_prob,
                                          chunk.memory.experts.data() + t * top_k,
                                          chunk.memory.weights.data() + t * top_k);
                    }
                  });
}

void CpuLayers::pack(CpuChunk& chunk) {
  const int top_k = shape_.top_k;
  const std::int64_t pairs = chunk.num_tokens() * top_k;
  std::fill(chunk.memory.counts.begin(), chunk.memory.counts.end(), 0);
  const auto place_of = [&](std::int64_t i) {
    const auto expert = static_cast<std::size_t>(chunk.memory.experts[static_cast<std::size_t>(i)]);
    return static_cast<std::size_t>(options_.part.send_order[expert]);
  };
  for (std::int64_t i = 0; i < pairs; ++i) ++chunk.memory.counts[place_of(i)];
  std::exclusive_scan(chunk.memory.counts.begin(), chunk.memory.counts.end(),
                      chunk.memory.next_slot.begin(), 0);
  for (std::int64_t i = 0; i < pairs; ++i)
    chunk.memory.slots[i] = chunk.memory.next_slot[place_of(i)]++;
  const int width = shape_.hidden;
  const auto bytes = static_cast<std::size_t>(width * element_bytes_);
  parallel_ranges(options_.num_threads, pairs, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      std::memcpy(row(chunk.dispatch_send, chunk.memory.slots[i], width),
                                  row(work_.h, i / top_k, width), bytes);
                    }
                  });
}

void CpuLayers::merge(CpuChunk& chunk) {
  const int width = shape_.hidden;
  const int top_k = shape_.top_k;
  parallel_ranges(options_.num_threads, chunk.num_tokens(), grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      kernels_.merge(x_row(chunk, t), chunk.combine_recv,
                                     chunk.memory.slots.data() + t * top_k,
                                     chunk.memory.weights.data() + t * top_k, top_k, width);
                    }
                  });
}

void CpuLayers::move_kv(const CpuOp& op) {
  const KvMove move{layout_,  options_.dtype, kv_.layers[static_cast<std::size_t>(op.layer)].data(),
                    op.pages, op.keys,        op.values};
  const bool save = op.kind == CpuOp::Kind::save_kv;
  parallel_ranges(options_.num_threads, op.num_positions, grain_rows(shape_.kv_width()),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      move_kv_position(move, op.first_position + static_cast<int>(i), i, save);
                    }
                  });
}

}  // namespace atl::compute
