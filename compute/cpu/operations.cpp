#include "compute/cpu/operations.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "compute/cpu/kv.hpp"
#include "compute/error.hpp"

namespace atl::compute {

namespace {

/// Fewest elements worth a thread of their own in an elementwise kernel.
constexpr std::int64_t grain_elements = 16384;

std::int64_t grain_rows(std::int64_t width) {
  return std::max<std::int64_t>(1, grain_elements / std::max<std::int64_t>(width, 1));
}

}  // namespace

void CpuLayers::execute(const CpuOp& op) {
  if (op.chunk != nullptr && op.chunk->tokens.empty() && op.kind != CpuOp::Kind::route &&
      op.kind != CpuOp::Kind::experts) {
    return;
  }
  switch (op.kind) {
    case CpuOp::Kind::embed:
      return embed(*op.chunk);
    case CpuOp::Kind::attention:
      return attention(*op.chunk, op.layer);
    case CpuOp::Kind::mlp:
      return mlp(*op.chunk, op.layer);
    case CpuOp::Kind::route:
      return route(*op.chunk, op.layer);
    case CpuOp::Kind::experts:
      return experts(op.layer, op.blocks);
    case CpuOp::Kind::merge:
      return merge(*op.chunk);
    case CpuOp::Kind::sample:
      return sample(*op.chunk, op.rows, op.how, op.sampled);
    case CpuOp::Kind::logits:
      return logits(*op.chunk, op.rows, op.out);
    case CpuOp::Kind::logprobs:
      return logprobs(*op.chunk, op.rows, op.targets, op.out);
    case CpuOp::Kind::save_x:
      std::memcpy(op.x, op.chunk->x.data(),
                  op.chunk->tokens.size() * static_cast<std::size_t>(shape_.hidden) *
                      size_of(options_.dtype));
      return;
    case CpuOp::Kind::save_kv:
    case CpuOp::Kind::load_kv:
      return move_kv(op);
    case CpuOp::Kind::host_task:
      return (*op.task)();
  }
}

void CpuLayers::norm(const void* x, const AlignedBuffer& weight, void* out, std::int64_t rows) {
  const int width = shape_.hidden;
  parallel_ranges(options_.num_threads, rows, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    kernels_.rms_norm(row(const_cast<void*>(x), begin, width), weight.as<float>(),
                                      shape_.rms_eps, row(out, begin, width), end - begin, width);
                  });
}

void CpuLayers::add(void* x, const void* y, std::int64_t rows) {
  const int width = shape_.hidden;
  parallel_ranges(options_.num_threads, rows, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    kernels_.add(row(x, begin, width), row(const_cast<void*>(y), begin, width),
                                 (end - begin) * width);
                  });
}

void CpuLayers::embed(CpuChunk& chunk) {
  const int width = shape_.hidden;
  for (std::int64_t t = 0; t < chunk.num_tokens(); ++t) {
    const std::int32_t token = chunk.tokens[static_cast<std::size_t>(t)];
    require(token >= 0 && token < shape_.vocab,
            "cannot embed token {} (the vocabulary has ids 0 to {}); check the request", token,
            shape_.vocab - 1);
    std::memcpy(row(chunk.x, t, width), row(embedding_, token, width),
                static_cast<std::size_t>(width * element_bytes_));
  }
}

void CpuLayers::attention(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const std::int64_t num_tokens = chunk.num_tokens();
  const int hidden = shape_.hidden;
  const int qkv_width = shape_.q_width() + 2 * shape_.kv_width();
  for (std::int64_t t = 0; t < num_tokens; t += tile_rows) {
    const std::int64_t rows = std::min<std::int64_t>(tile_rows, num_tokens - t);
    norm(row(chunk.x, t, hidden), weights.attention_norm, in_.data(), rows);
    gemm_.run(weights.qkv, in_.data(), rows, row(qkv_, t, qkv_width), Gemm::Output::activation);
  }
  rotate_and_store(chunk, layer);
  attend(chunk, layer);
  for (std::int64_t t = 0; t < num_tokens; t += tile_rows) {
    const std::int64_t rows = std::min<std::int64_t>(tile_rows, num_tokens - t);
    gemm_.run(weights.o, row(context_, t, shape_.q_width()), rows, out_.data(),
              Gemm::Output::activation);
    add(row(chunk.x, t, hidden), out_.data(), rows);
  }
}

void CpuLayers::rotate_and_store(CpuChunk& chunk, int layer) {
  for (const Segment& segment : chunk.segments) {
    for (int i = 0; i < segment.num_rows; ++i) {
      const int position = segment.first_position + i;
      const auto at = static_cast<std::size_t>(segment.first_row + i);
      positions_[at] = position;
      pages_[at] = segment.pages[position / options_.page_tokens];
    }
  }
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  RopeArgs args;
  args.layout = layout_;
  args.tables = {rope_coarse_.as<double>(), rope_fine_.as<double>()};
  args.norm = shape_.qk_norm;
  args.q_norm = weights.q_norm.as<float>();
  args.k_norm = weights.k_norm.as<float>();
  args.eps = shape_.rms_eps;
  args.qkv = qkv_.data();
  args.kv = kv_[static_cast<std::size_t>(layer)].data();
  args.positions = positions_.data();
  args.pages = pages_.data();
  parallel_ranges(
      options_.num_threads, chunk.num_tokens(), grain_rows(std::int64_t{4} * shape_.q_width()),
      [&](std::int64_t begin, std::int64_t end, int) { kernels_.rope(args, begin, end); });
}

void CpuLayers::attend(CpuChunk& chunk, int layer) {
  tasks_.clear();
  for (const Segment& segment : chunk.segments) {
    for (int first = 0; first < segment.num_rows; first += attend_rows_) {
      tasks_.push_back({&segment, first, std::min(attend_rows_, segment.num_rows - first)});
    }
  }
  const int num_kv_heads = shape_.num_kv_heads;
  const int qkv_width = shape_.q_width() + 2 * shape_.kv_width();
  const auto run = [&](std::int64_t index, int thread) {
    const AttendTask& task = tasks_[static_cast<std::size_t>(index / num_kv_heads)];
    const std::int64_t first_row = task.segment->first_row + task.first_row;
    AttendArgs args;
    args.layout = layout_;
    args.qkv = row(qkv_, first_row, qkv_width);
    args.qkv_stride = qkv_width;
    args.out = row(context_, first_row, shape_.q_width());
    args.kv = kv_[static_cast<std::size_t>(layer)].data();
    args.pages = task.segment->pages;
    args.num_rows = task.num_rows;
    args.first_position = task.segment->first_position + task.first_row;
    args.kv_head = static_cast<int>(index % num_kv_heads);
    args.scratch = attend_scratch_.as<float>() + thread * scratch_floats_;
    kernels_.attend(args);
  };
  const std::int64_t count = static_cast<std::int64_t>(tasks_.size()) * num_kv_heads;
  if (options_.num_threads == 1 || count == 1) {
    for (std::int64_t i = 0; i < count; ++i) run(i, 0);
    return;
  }
  // Later rows have more keys, so tasks are handed out as threads become free.
  std::atomic<std::int64_t> next{0};
  parallel_ranges(options_.num_threads, options_.num_threads, 1,
                  [&](std::int64_t, std::int64_t, int thread) {
                    for (std::int64_t i = next++; i < count; i = next++) run(i, thread);
                  });
}

void CpuLayers::run_mlp(const CpuMlp& mlp, int width, const void* in, int rows, void* out) {
  const bool swiglu = shape_.activation == Activation::swiglu;
  if (swiglu) gemm_.run(mlp.up, in, rows, inner_.data(), Gemm::Output::activation);
  gemm_.run(swiglu ? mlp.gate : mlp.up, in, rows, inner_float_.data(), Gemm::Output::float32);
  parallel_ranges(options_.num_threads, rows, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    const float* from = inner_float_.as<float>() + begin * width;
                    char* to = row(inner_, begin, width);
                    const std::int64_t count = (end - begin) * width;
                    if (swiglu) {
                      kernels_.swiglu(from, to, to, count);
                    } else {
                      kernels_.gelu(from, to, count);
                    }
                  });
  gemm_.run(mlp.down, inner_.data(), rows, out, Gemm::Output::activation);
}

void CpuLayers::mlp(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  for (std::int64_t t = 0; t < chunk.num_tokens(); t += tile_rows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(tile_rows, chunk.num_tokens() - t));
    norm(row(chunk.x, t, shape_.hidden), weights.ffn_norm, in_.data(), rows);
    run_mlp(weights.dense, shape_.intermediate, in_.data(), rows, out_.data());
    add(row(chunk.x, t, shape_.hidden), out_.data(), rows);
  }
}

void CpuLayers::route(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const std::int64_t num_tokens = chunk.num_tokens();
  const int num_experts = shape_.num_experts;
  const int top_k = shape_.top_k;
  norm(chunk.x.data(), weights.ffn_norm, h_.data(), num_tokens);
  gemm_.run(weights.router, h_.data(), num_tokens, chunk.router_logits.data(),
            Gemm::Output::float32);
  parallel_ranges(options_.num_threads, num_tokens, grain_rows(std::int64_t{16} * num_experts),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      kernels_.top_k(chunk.router_logits.data() + t * num_experts, num_experts,
                                     top_k, shape_.norm_topk_prob, chunk.experts.data() + t * top_k,
                                     chunk.weights.data() + t * top_k);
                    }
                  });
  pack(chunk);
}

void CpuLayers::pack(CpuChunk& chunk) {
  const int top_k = shape_.top_k;
  const std::int64_t pairs = chunk.num_tokens() * top_k;
  std::fill(chunk.counts.begin(), chunk.counts.end(), 0);
  const auto place_of = [&](std::int64_t i) {
    const auto expert = static_cast<std::size_t>(chunk.experts[static_cast<std::size_t>(i)]);
    return static_cast<std::size_t>(options_.part.send_order[expert]);
  };
  for (std::int64_t i = 0; i < pairs; ++i) ++chunk.counts[place_of(i)];
  std::exclusive_scan(chunk.counts.begin(), chunk.counts.end(), chunk.next_slot.begin(), 0);
  for (std::int64_t i = 0; i < pairs; ++i) chunk.slots[i] = chunk.next_slot[place_of(i)]++;
  const int width = shape_.hidden;
  const auto bytes = static_cast<std::size_t>(width * element_bytes_);
  parallel_ranges(options_.num_threads, pairs, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t i = begin; i < end; ++i) {
                      std::memcpy(row(chunk.dispatch_send, chunk.slots[i], width),
                                  row(h_, i / top_k, width), bytes);
                    }
                  });
}

void CpuLayers::experts(int layer, std::span<const RowBlock> blocks) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const int width = shape_.hidden;
  const std::int64_t row_bytes = width * element_bytes_;
  std::size_t block = 0;
  int taken = 0;  // rows of blocks[block] already done
  while (block < blocks.size()) {
    // A tile takes rows of one expert from as many blocks as it needs.
    const int expert = blocks[block].local_expert;
    const std::size_t first_block = block;
    const int first_taken = taken;
    int rows = 0;
    while (block < blocks.size() && blocks[block].local_expert == expert && rows < tile_rows) {
      const int count = std::min(tile_rows - rows, blocks[block].num_rows - taken);
      if (count > 0) {
        std::memcpy(row(in_, rows, width),
                    static_cast<const char*>(blocks[block].in) + taken * row_bytes,
                    static_cast<std::size_t>(count * row_bytes));
      }
      rows += count;
      taken += count;
      if (taken == blocks[block].num_rows) {
        ++block;
        taken = 0;
      }
    }
    if (rows == 0) continue;
    run_mlp(weights.experts[static_cast<std::size_t>(expert)], shape_.moe_intermediate, in_.data(),
            rows, out_.data());
    int begin = first_taken;
    int done = 0;
    for (std::size_t b = first_block; done < rows; ++b, begin = 0) {
      const int count = std::min(rows - done, blocks[b].num_rows - begin);
      if (count > 0) {
        std::memcpy(static_cast<char*>(blocks[b].out) + begin * row_bytes, row(out_, done, width),
                    static_cast<std::size_t>(count * row_bytes));
      }
      done += count;
    }
  }
}

void CpuLayers::merge(CpuChunk& chunk) {
  const int width = shape_.hidden;
  const int top_k = shape_.top_k;
  parallel_ranges(options_.num_threads, chunk.num_tokens(), grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) {
                      kernels_.merge(row(chunk.x, t, width), chunk.combine_recv,
                                     chunk.slots.data() + t * top_k,
                                     chunk.weights.data() + t * top_k, top_k, width);
                    }
                  });
}

void CpuLayers::norm_rows(CpuChunk& chunk, std::span<const std::int32_t> rows, void* out) {
  const int width = shape_.hidden;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    kernels_.rms_norm(row(chunk.x, rows[i], width), final_norm_.as<float>(), shape_.rms_eps,
                      row(out, static_cast<std::int64_t>(i), width), 1, width);
  }
}

void CpuLayers::logits(CpuChunk& chunk, std::span<const std::int32_t> rows, float* out) {
  for (std::size_t i = 0; i < rows.size(); i += tile_rows) {
    const auto tile = rows.subspan(i, std::min<std::size_t>(tile_rows, rows.size() - i));
    norm_rows(chunk, tile, in_.data());
    gemm_.run_exact(lm_head_, in_.data(), static_cast<std::int64_t>(tile.size()),
                    out + static_cast<std::int64_t>(i) * shape_.vocab);
  }
}

/// Calls visit(i, logits [vocab] of rows[i]) for every row, on several threads.
template <class Visit>
void CpuLayers::for_logits(CpuChunk& chunk, std::span<const std::int32_t> rows,
                           const Visit& visit) {
  const std::int64_t vocab = shape_.vocab;
  const auto step = static_cast<std::size_t>(vocab_rows_);
  for (std::size_t i = 0; i < rows.size(); i += step) {
    const auto tile = rows.subspan(i, std::min(step, rows.size() - i));
    norm_rows(chunk, tile, in_.data());
    gemm_.run_exact(lm_head_, in_.data(), static_cast<std::int64_t>(tile.size()),
                    vocab_.as<float>());
    parallel_ranges(options_.num_threads, static_cast<std::int64_t>(tile.size()), grain_rows(vocab),
                    [&](std::int64_t begin, std::int64_t end, int) {
                      for (std::int64_t r = begin; r < end; ++r) {
                        visit(i + static_cast<std::size_t>(r), vocab_.as<float>() + r * vocab);
                      }
                    });
  }
}

void CpuLayers::logprobs(CpuChunk& chunk, std::span<const std::int32_t> rows,
                         std::span<const std::int32_t> targets, float* out) {
  for_logits(chunk, rows, [&](std::size_t i, const float* logits) {
    out[i] = kernels_.log_prob(logits, shape_.vocab, targets[i]);
  });
}

void CpuLayers::sample(CpuChunk& chunk, std::span<const std::int32_t> rows,
                       std::span<const SamplingRequest> how, SampledToken* out) {
  for_logits(chunk, rows, [&](std::size_t i, const float* logits) {
    out[i] = sample_row({logits, static_cast<std::size_t>(shape_.vocab)}, draw_of(how[i]));
  });
}

void CpuLayers::move_kv(const CpuOp& op) {
  const KvMove move{layout_,  options_.dtype, kv_[static_cast<std::size_t>(op.layer)].data(),
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
