#include "compute/cpu/operations.hpp"

#include <algorithm>
#include <cstring>

#include "compute/cpu/kv.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {
/// Operations that have rows to work on, or counts to say, where the chunk has no token.
bool serves_others(const CpuOp& op) {
  return op.kind == CpuOp::Kind::route || op.kind == CpuOp::Kind::regroup ||
         op.kind == CpuOp::Kind::experts || op.kind == CpuOp::Kind::fold ||
         (op.kind == CpuOp::Kind::attention && op.chunk->all_rows > 0);
}
}  // namespace

void CpuLayers::execute(const CpuOp& op) {
  if (op.chunk != nullptr && op.chunk->tokens.empty() && !serves_others(op)) return;
  switch (op.kind) {
    case CpuOp::Kind::embed:
      return embed(*op.chunk);
    case CpuOp::Kind::attention:
      return attention(*op.chunk, op.layer, op.attention_part);
    case CpuOp::Kind::mlp:
      return mlp(*op.chunk, op.layer);
    case CpuOp::Kind::shared_expert:
      return shared_expert(*op.chunk, op.layer);
    case CpuOp::Kind::route:
      return route(*op.chunk, op.layer, op.to);
    case CpuOp::Kind::regroup:
      return regroup(*op.chunk, op.node_rows);
    case CpuOp::Kind::experts:
      return experts(*op.chunk, op.layer, op.blocks, op.expert_part);
    case CpuOp::Kind::fold:
      return fold(*op.chunk, op.node_rows);
    case CpuOp::Kind::merge:
      return merge(*op.chunk);
    case CpuOp::Kind::sample:
      return sample(*op.chunk, op.rows, op.how, op.sampled);
    case CpuOp::Kind::logits:
      return logits(*op.chunk, op.rows, op.out);
    case CpuOp::Kind::logprobs:
      return logprobs(*op.chunk, op.rows, op.targets, op.scored);
    case CpuOp::Kind::save_x:
      std::memcpy(
          op.x, op.chunk->memory.x.data(),
          op.chunk->tokens.size() * static_cast<std::size_t>(shape_.hidden) * sizeof(float));
      return;
    case CpuOp::Kind::save_choices: {
      const auto pairs = static_cast<std::ptrdiff_t>(op.chunk->num_tokens() * shape_.top_k);
      std::copy_n(op.chunk->memory.experts.begin(), pairs, op.experts);
      std::copy_n(op.chunk->memory.weights.begin(), pairs, op.out);
      if (op.given_up != nullptr) {
        std::copy_n(op.chunk->memory.given_up.begin(), op.chunk->num_tokens(), op.given_up);
      }
      return;
    }
    case CpuOp::Kind::save_kv:
    case CpuOp::Kind::load_kv:
      return move_kv(op);
    case CpuOp::Kind::host_task:
      return (*op.task)();
  }
}

void CpuLayers::norm(const CpuChunk& chunk, const AlignedBuffer& weight, void* out) {
  const int width = shape_.hidden;
  parallel_ranges(options_.num_threads, chunk.num_tokens(), grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    kernels_.rms_norm(x_row(chunk, begin), weight.as<float>(), shape_.rms_eps,
                                      row(out, begin, width), end - begin, width);
                  });
}

void CpuLayers::embed(CpuChunk& chunk) {
  if (options_.part.first_layer > 0) return;
  const int width = shape_.hidden;
  for (std::int64_t t = 0; t < chunk.num_tokens(); ++t) {
    const std::int32_t token = chunk.tokens[static_cast<std::size_t>(t)];
    require(token >= 0 && token < shape_.vocab,
            "cannot embed token {} (the vocabulary has ids 0 to {}); check the request", token,
            shape_.vocab - 1);
    kernels_.to_float(row(embedding_, token, width), x_row(chunk, t), width);
    if (shape_.embedding_scale != 1) kernels_.scale(x_row(chunk, t), shape_.embedding_scale, width);
  }
}

void CpuLayers::move_kv(const CpuOp& op) {
  const KvMove move{
      layout(op.layer), options_.dtype, kv_.layers[static_cast<std::size_t>(op.layer)].data(),
      op.pages,         op.keys,        op.values};
  const bool save = op.kind == CpuOp::Kind::save_kv;
  parallel_ranges(options_.num_threads, op.num_positions, grain_rows(own_.qkv_width()),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      move_kv_position(move, op.first_position + static_cast<int>(i), i, save);
                    }
                  });
}

}  // namespace atl::compute
