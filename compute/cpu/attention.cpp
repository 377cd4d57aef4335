// The CPU backend's attention, in its parts.

#include <algorithm>
#include <atomic>
#include <cstring>

#include "compute/cpu/operations.hpp"

namespace atl::compute {

void CpuLayers::attention(CpuChunk& chunk, int layer, AttentionPart part) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const bool all = part == AttentionPart::all;
  const bool shared = options_.part.attention.shared();
  if (part == AttentionPart::norm && shared) {
    norm(chunk, weights.attention_norm, row(chunk.normed, chunk.first_own_row, shape_.hidden));
  }
  if (all || part == AttentionPart::project) project(chunk, weights);
  if (all || part == AttentionPart::attend) {
    place_rows(chunk);
    if (shape_.latent.used()) {
      rotate_latents(chunk, layer);
      attend_latents(chunk, layer);
    } else {
      rotate_and_store(chunk, layer);
      attend(chunk, layer);
    }
  }
  if (all || part == AttentionPart::output) output(chunk, weights);
  if (part == AttentionPart::add && shared) add_output(chunk);
}

std::int64_t CpuLayers::attention_rows(const CpuChunk& chunk) const {
  return options_.part.attention.shared() ? chunk.all_rows : chunk.num_tokens();
}

void CpuLayers::project(CpuChunk& chunk, const CpuLayer& weights) {
  const void* normed = chunk.normed;
  const bool shared = options_.part.attention.shared();
  if (!shared) {
    norm(chunk, weights.attention_norm, work_.h.data());
    normed = work_.h.data();
  }
  if (shape_.latent.used()) return project_latents(chunk, weights, normed);
  gemm_->run(weights.qkv, normed, attention_rows(chunk), chunk.memory.qkv.data(), Finish::rounded,
             weights.qkv_bias.as<float>());
  if (shared && shape_.qk_norm == QkNorm::whole_row) sum_heads(chunk);
}

const float* CpuLayers::output_bias(const CpuLayer& weights, std::int64_t first) const {
  const AttentionShare& share = options_.part.attention;
  // Of summands one has it.
  if (weights.output_bias.bytes() == 0 || (is_sum(share.output) && share.place > 0)) return nullptr;
  return weights.output_bias.as<float>() + first;
}

void CpuLayers::output(CpuChunk& chunk, const CpuLayer& weights) {
  const AttentionShare& share = options_.part.attention;
  const float* bias = output_bias(weights, 0);
  if (!share.shared()) {
    return gemm_->run(weights.o.front(), chunk.memory.context.data(), chunk.num_tokens(),
                      chunk.memory.x.data(), Finish::add, bias);
  }
  if (is_sum(chunk.output)) {
    return gemm_->run(weights.o.front(), chunk.heads_send, chunk.all_rows, chunk.output_send,
                      finish_of(Weight::o, options_), bias);
  }
  if (chunk.output == OutputCut::columns) {
    gather_heads(chunk, chunk.all_rows);
    const bool either = share.output == OutputCut::either;
    const PackedWeight& own = weights.o[either ? static_cast<std::size_t>(share.place) : 0];
    if (either && bias != nullptr) bias += static_cast<std::ptrdiff_t>(share.place) * own.n();
    return gemm_->run(own, work_.heads.data(), chunk.all_rows, chunk.output_send, Finish::rounded,
                      bias);
  }
  gather_heads(chunk, chunk.num_tokens());
  if (weights.o.size() > 1) return output_parts(chunk, weights);
  gemm_->run(weights.o.front(), work_.heads.data(), chunk.num_tokens(), chunk.memory.x.data(),
             Finish::add, bias);
}

void CpuLayers::output_parts(CpuChunk& chunk, const CpuLayer& weights) {
  const std::int64_t width = weights.o.front().n();
  for (std::int64_t first = 0; first < chunk.num_tokens(); first += most_rows_at_once) {
    const std::int64_t end = std::min<std::int64_t>(chunk.num_tokens(), first + most_rows_at_once);
    parts_.in.clear();
    parts_.out.clear();
    parts_.products.clear();
    for (std::int64_t r = first; r < end; ++r) {
      parts_.in.push_back(row(work_.heads, r, shape_.heads_width()));
    }
    for (std::size_t part = 0; part < weights.o.size(); ++part) {
      for (std::int64_t r = first; r < end; ++r) {
        parts_.out.push_back(x_row(chunk, r) + static_cast<std::int64_t>(part) * width);
      }
      for (std::int64_t r = first; r < end; r += tile_rows) {
        const int count = static_cast<int>(std::min<std::int64_t>(tile_rows, end - r));
        const std::int64_t at = r - first;
        parts_.products.push_back(
            {&weights.o[part],
             nullptr,
             Finish::add,
             count,
             parts_.in.data() + at,
             parts_.out.data() + static_cast<std::int64_t>(part) * (end - first) + at,
             {output_bias(weights, static_cast<std::int64_t>(part) * width), nullptr, 0, 0}});
      }
    }
    gemm_->run(parts_.products);
  }
}

void CpuLayers::gather_heads(const CpuChunk& chunk, std::int64_t rows) {
  const AttentionShare& share = options_.part.attention;
  const int width = own_.heads_width();
  const auto bytes = static_cast<std::size_t>(width * element_bytes_);
  parallel_ranges(options_.num_threads, rows, grain_rows(shape_.heads_width()),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t r = begin; r < end; ++r) {
                      for (int m = 0; m < share.members; ++m) {
                        const bool kept = chunk.output == OutputCut::rows && m == share.place;
                        const char* from =
                            kept ? row(chunk.heads_send, chunk.first_own_row + r, width)
                                 : row(chunk.heads_recv, m * rows + r, width);
                        std::memcpy(row(work_.heads, r * share.members + m, width), from, bytes);
                      }
                    }
                  });
}

void CpuLayers::add_output(CpuChunk& chunk) {
  const AttentionShare& share = options_.part.attention;
  if (chunk.output == OutputCut::rows) return;
  const std::int64_t rows = chunk.num_tokens();
  const int hidden = shape_.hidden;
  const auto add_row = [&](std::int64_t t) {
    const std::int64_t own = chunk.first_own_row + t;
    if (is_sum(chunk.output)) {
      const bool rounded = chunk.output == OutputCut::sum_bf16;
      const std::int64_t bytes = rounded ? element_bytes_ : std::int64_t{sizeof(float)};
      const auto add = rounded ? kernels_.add_rounded_sum : kernels_.add_sum;
      return add(x_row(chunk, t), static_cast<const char*>(chunk.output_recv) + t * hidden * bytes,
                 rows * hidden, static_cast<const char*>(chunk.output_send) + own * hidden * bytes,
                 share.place, share.members, hidden);
    }
    const int width = hidden / share.members;
    for (int m = 0; m < share.members; ++m) {
      const char* from = m == share.place ? row(chunk.output_send, own, width)
                                          : row(chunk.output_recv, m * rows + t, width);
      kernels_.add(x_row(chunk, t) + m * width, from, width);
    }
  };
  parallel_ranges(options_.num_threads, rows, grain_rows(hidden),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t t = begin; t < end; ++t) add_row(t);
                  });
}

void CpuLayers::sum_heads(CpuChunk& chunk) {
  const int stride = sums_per_member_;
  float* own = chunk.head_sums + options_.part.attention.place * chunk.all_rows * stride;
  parallel_ranges(options_.num_threads, chunk.all_rows, grain_rows(own_.qkv_width()),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t r = begin; r < end; ++r) {
                      kernels_.head_squares(row(chunk.memory.qkv, r, own_.qkv_width()),
                                            own_.num_heads + own_.num_kv_heads(), shape_.head_dim,
                                            own + r * stride);
                    }
                  });
}

void CpuLayers::mean_squares(const CpuChunk& chunk) {
  const int group = shape_.num_heads / shape_.num_kv_heads;
  const auto sum_at = [&](std::int64_t r, int member, int index) {
    return chunk.head_sums[(member * chunk.all_rows + r) * sums_per_member_ + index];
  };
  const auto set_row = [&](std::int64_t r) {
    float q = 0;
    for (int head = 0; head < shape_.num_heads; ++head) {
      q += sum_at(r, head / own_.num_heads, head % own_.num_heads);
    }
    float k = 0;
    for (int kv_head = 0; kv_head < shape_.num_kv_heads; ++kv_head) {
      // Of the members that keep it the first, whose own first one is its first query head's.
      const int member = kv_head * group / own_.num_heads;
      k += sum_at(r, member, own_.num_heads + kv_head - member * own_.num_heads / group);
    }
    float* means = work_.mean_squares.as<float>() + 2 * r;
    means[0] = q / static_cast<float>(shape_.q_width());
    means[1] = k / static_cast<float>(shape_.kv_width());
  };
  parallel_ranges(options_.num_threads, chunk.all_rows,
                  grain_rows(shape_.num_heads + shape_.num_kv_heads),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    for (std::int64_t r = begin; r < end; ++r) set_row(r);
                  });
}

void CpuLayers::place_rows(const CpuChunk& chunk) {
  for (const Segment& segment : chunk.segments) {
    for (int i = 0; i < segment.num_rows; ++i) {
      const int position = segment.first_position + i;
      const auto at = static_cast<std::size_t>(segment.first_row + i);
      positions_[at] = position;
      pages_[at] = segment.pages[position / options_.page_tokens];
    }
  }
}

RopeTables CpuLayers::rope_tables(int layer) const {
  const auto& tables = work_.ropes[static_cast<std::size_t>(shape_.attention(layer).rope)];
  return {tables.coarse.as<double>(), tables.fine.as<double>(), tables.dims};
}

void CpuLayers::rotate_and_store(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  RopeArgs args;
  args.layout = layout(layer);
  args.tables = rope_tables(layer);
  args.norm = shape_.qk_norm;
  args.norm_after = shape_.norm_after_rope;
  args.q_norm = weights.q_norm.as<float>();
  args.k_norm = weights.k_norm.as<float>();
  args.eps = shape_.rms_eps;
  args.value_scale = shape_.value_scale;
  args.qkv = chunk.memory.qkv.data();
  args.kv = kv_.layers[static_cast<std::size_t>(layer)].data();
  args.positions = positions_.data();
  args.pages = pages_.data();
  if (options_.part.attention.shared() && shape_.qk_norm == QkNorm::whole_row) {
    mean_squares(chunk);
    args.mean_squares = work_.mean_squares.as<float>();
  }
  parallel_ranges(
      options_.num_threads, attention_rows(chunk), grain_rows(std::int64_t{4} * own_.q_width()),
      [&](std::int64_t begin, std::int64_t end, int) { kernels_.rope(args, begin, end); });
}

void CpuLayers::attend(CpuChunk& chunk, int layer) {
  const AttentionKind kind = shape_.attention(layer);
  const std::size_t limits =
      shape_.attentions.empty() ? 0 : shape_.attention_of[static_cast<std::size_t>(layer)];
  attend_plan_.cut(chunk.segments, work_.attend[limits]);
  const OwnHeads& own = heads_of_layer_[static_cast<std::size_t>(layer)];
  const KvLayout& layout = this->layout(layer);
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const int num_kv_heads = own.num_kv_heads();
  const int qkv_width = own.qkv_width();
  void* out = attended(chunk);
  const auto run = [&](std::int64_t index, int thread) {
    const AttendPiece& piece =
        attend_plan_.pieces()[static_cast<std::size_t>(index / num_kv_heads)];
    const AttendTile& tile = attend_plan_.tiles()[static_cast<std::size_t>(piece.tile)];
    const std::int64_t first_row = tile.segment->first_row + tile.first_row;
    AttendArgs args;
    args.layout = layout;
    args.qkv = row(chunk.memory.qkv, first_row, qkv_width);
    args.qkv_stride = qkv_width;
    args.out = row(out, first_row, own.heads_width());
    args.kv = kv_.layers[static_cast<std::size_t>(layer)].data();
    args.pages = tile.segment->pages;
    args.num_rows = tile.num_rows;
    args.first_position = tile.segment->first_position + tile.first_row;
    args.kv_head = static_cast<int>(index % num_kv_heads);
    const HeadGroup& group = own.groups[static_cast<std::size_t>(args.kv_head)];
    args.first_head = group.first_head - own.first_head();
    args.num_heads = group.num_heads;
    args.scale = shape_.logit_scale();
    args.window = kind.window;
    args.sinks = kind.sinks ? weights.sinks.as<float>() : nullptr;
    args.scratch = work_.attend_scratch.as<float>() + thread * work_.scratch_floats;
    if (tile.pieces > 1) {
      const int queries = tile.num_rows * own.most_in_group;
      args.partial = work_.attend_partial.as<float>() + tile.partial +
                     args.kv_head * tile.num_splits() * attend_state_floats(layout, queries);
      args.first_split = piece.first_split;
      args.end_split = piece.end_split;
    }
    kernels_.attend(args);
    if (tile.pieces == 1) return;
    // Whoever ends last has all states before its eyes, and merges them in their order.
    int& left = attend_plan_.counters()[static_cast<std::size_t>(tile.counter + args.kv_head)];
    if (std::atomic_ref(left).fetch_sub(1) == 1) kernels_.merge_splits(args);
  };
  const auto count = static_cast<std::int64_t>(attend_plan_.pieces().size()) * num_kv_heads;
  parallel_tasks(options_.num_threads, count, run);
}

}  // namespace atl::compute
