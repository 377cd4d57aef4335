// The CPU backend's latent attention: prompt tokens attend to keys and values that are expanded
// from the latents head by head and then forgotten; generated ones to the latents themselves, their
// queries taken to them. Which of the two depends on the token alone, and so do its bits.

#include "compute/cpu/latent.hpp"

#include <algorithm>
#include <cstring>

#include "compute/cpu/operations.hpp"

namespace atl::compute {

KvLayout expanded_layout(const KvLayout& layout, int positions) {
  KvLayout expanded = layout;
  expanded.num_kv_heads = 1;
  expanded.page_tokens = positions;
  expanded.latent_width = 0;
  expanded.latent_stride = 0;
  return expanded;
}

KvLayout absorbed_layout(const KvLayout& layout, const ModelShape& shape) {
  KvLayout absorbed = layout;
  absorbed.num_kv_heads = 1;
  absorbed.head_dim = layout.latent_width;
  absorbed.value_dim = shape.latent.keys;
  absorbed.value_stride = (shape.latent.keys + 15) / 16 * 16;
  return absorbed;
}

void CpuLayers::reserve_latents() {
  if (!shape_.latent.used()) return;
  const std::size_t heads =
      static_cast<std::size_t>(std::max(work_.latent.heads_at_once, own_.num_heads));
  const std::size_t rows = most_rows_at_once * heads;
  parts_.in.reserve(rows);
  parts_.out.reserve(2 * rows);
  parts_.products.reserve(2 * most_rows_at_once / tile_rows * heads);
}

void CpuLayers::project_latents(CpuChunk& chunk, const CpuLayer& weights, const void* normed) {
  const std::int64_t rows = attention_rows(chunk);
  const LatentAttention& latent = shape_.latent;
  const float* bias = weights.qkv_bias.as<float>();
  if (latent.queries == 0) {
    return gemm_->run(weights.qkv, normed, rows, chunk.memory.qkv.data(), Finish::rounded, bias);
  }
  const std::int64_t width = latent.queries + latent.width();
  gemm_->run(weights.qkv, normed, rows, work_.latent.latents.data(), Finish::rounded, bias);
  const auto latents_of = [&](std::int64_t r) { return row(work_.latent.latents, r, width); };
  const auto kept = static_cast<std::size_t>(latent.width() * element_bytes_);
  const auto row_of = [&](std::int64_t r) { return row(chunk.memory.qkv, r, own_.qkv_width()); };
  parallel_ranges(options_.num_threads, rows, grain_rows(width),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    kernels_.norm_in_place(latents_of(begin), weights.q_latent_norm.as<float>(),
                                           latent.eps, end - begin, latent.queries, width);
                    for (std::int64_t r = begin; r < end; ++r) {
                      std::memcpy(row_of(r) + own_.q_width() * element_bytes_,
                                  latents_of(r) + latent.queries * element_bytes_, kept);
                    }
                  });
  for (std::int64_t first = 0; first < rows; first += most_rows_at_once) {
    const std::int64_t end = std::min<std::int64_t>(rows, first + most_rows_at_once);
    clear_parts();
    for (std::int64_t r = first; r < end; ++r) add_part(latents_of(r), row_of(r));
    add_products(weights.q_up, end - first);
    gemm_->run(parts_.products);
  }
}

void CpuLayers::clear_parts() {
  parts_.in.clear();
  parts_.out.clear();
  parts_.products.clear();
}

void CpuLayers::add_part(const void* in, void* out) {
  parts_.in.push_back(in);
  parts_.out.push_back(out);
}

void CpuLayers::add_products(const PackedWeight& weight, std::int64_t rows) {
  const std::int64_t in = std::ssize(parts_.in) - rows;
  const std::int64_t out = std::ssize(parts_.out) - rows;
  for (std::int64_t r = 0; r < rows; r += tile_rows) {
    parts_.products.push_back({&weight,
                               nullptr,
                               Finish::rounded,
                               static_cast<int>(std::min<std::int64_t>(tile_rows, rows - r)),
                               parts_.in.data() + in + r,
                               parts_.out.data() + out + r,
                               {}});
  }
}

void CpuLayers::rotate_latents(CpuChunk& chunk, int layer) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  LatentRopeArgs args;
  args.layout = layout(layer);
  args.tables = rope_tables(layer);
  args.temperature = shape_.temperature;
  args.norm = weights.kv_latent_norm.as<float>();
  args.eps = shape_.latent.eps;
  args.q = chunk.memory.qkv.data();
  args.q_stride = own_.qkv_width();
  args.latents = chunk.memory.qkv.as<char>() + own_.q_width() * element_bytes_;
  args.latent_row = own_.qkv_width();
  args.kv = kv_.layers[static_cast<std::size_t>(layer)].data();
  args.positions = positions_.data();
  args.pages = pages_.data();
  parallel_ranges(
      options_.num_threads, attention_rows(chunk), grain_rows(std::int64_t{4} * own_.qkv_width()),
      [&](std::int64_t begin, std::int64_t end, int) { kernels_.latent_rope(args, begin, end); });
}

const char* CpuLayers::latent_row(int layer, const Segment& segment, int position) const {
  const KvLayout& layout = this->layout(layer);
  const std::int64_t page = segment.pages[position / layout.page_tokens];
  return kv_.layers[static_cast<std::size_t>(layer)].as<char>() +
         (page * layout.page_elements() +
          std::int64_t{position % layout.page_tokens} * layout.latent_stride) *
             element_bytes_;
}

void CpuLayers::attend_latents(CpuChunk& chunk, int layer) {
  latent_rows_.clear();
  for (const Segment& segment : chunk.segments) {
    const int of_prompt = std::clamp(segment.prompt - segment.first_position, 0, segment.num_rows);
    if (of_prompt > 0) attend_expanded(chunk, layer, segment, of_prompt);
    for (int i = of_prompt; i < segment.num_rows; ++i) {
      latent_rows_.push_back({&segment, segment.first_row + i, segment.first_position + i});
    }
  }
  const std::span<const LatentRow> rows(latent_rows_);
  for (std::size_t first = 0; first < rows.size(); first += latent_block_rows) {
    attend_absorbed(
        chunk, layer,
        rows.subspan(first, std::min<std::size_t>(latent_block_rows, rows.size() - first)));
  }
}

void CpuLayers::expand(int layer, const Segment& segment, int context, int first_head,
                       int num_heads) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const KvLayout one = expanded_layout(layout(layer), static_cast<int>(whole_panels(context)));
  const int nope = one.head_dim - shape_.latent.rope;
  const auto head_at = [&](int h) { return row(work_.latent.expanded, h, one.head_elements()); };
  for (int first = 0; first < context; first += most_rows_at_once) {
    const int count = std::min(most_rows_at_once, context - first);
    const auto key_row = [&](int h, int i) {
      return row(work_.latent.rows, std::int64_t{h} * most_rows_at_once + i, one.head_dim);
    };
    clear_parts();
    for (int i = 0; i < count; ++i) parts_.in.push_back(latent_row(layer, segment, first + i));
    for (int h = 0; h < num_heads; ++h) {
      const auto& head = weights.latent_heads[static_cast<std::size_t>(first_head + h)];
      for (int i = 0; i < count; ++i) parts_.out.push_back(key_row(h, i));
      add_products(head.k_up, count);
      for (int i = 0; i < count; ++i) {
        parts_.out.push_back(
            row(head_at(h), one.keys_per_head() + std::int64_t{first + i} * one.value_stride, 1));
      }
      add_products(head.v_up, count);
    }
    gemm_->run(parts_.products);
    // Keys become whole by the rotated part, which is the same for all heads.
    const auto rope_bytes = static_cast<std::size_t>(shape_.latent.rope * element_bytes_);
    const std::int64_t panels = (count + panel_tokens - 1) / panel_tokens;
    parallel_tasks(options_.num_threads, num_heads * panels, [&](std::int64_t task, int) {
      const int h = static_cast<int>(task / panels);
      const int begin = static_cast<int>(task % panels) * panel_tokens;
      const int end = std::min(begin + panel_tokens, count);
      for (int i = begin; i < end; ++i) {
        std::memcpy(key_row(h, i) + nope * element_bytes_,
                    latent_row(layer, segment, first + i) + shape_.latent.keys * element_bytes_,
                    rope_bytes);
      }
      kernels_.pack_keys(key_row(h, begin), end - begin, one.head_dim,
                         row(head_at(h), std::int64_t{first + begin} * one.head_dim, 1));
    });
  }
}

void CpuLayers::attend_expanded(CpuChunk& chunk, int layer, const Segment& segment, int num_rows) {
  const int context = segment.first_position + num_rows;
  const KvLayout one = expanded_layout(layout(layer), static_cast<int>(whole_panels(context)));
  const std::int32_t page = 0;
  const int tiles = (num_rows + latent_tile_rows - 1) / latent_tile_rows;
  for (int first = 0; first < own_.num_heads; first += work_.latent.heads_at_once) {
    const int heads = std::min(work_.latent.heads_at_once, own_.num_heads - first);
    expand(layer, segment, context, first, heads);
    parallel_tasks(
        options_.num_threads, std::int64_t{heads} * tiles, [&](std::int64_t task, int thread) {
          const int h = static_cast<int>(task / tiles);
          const int begin = static_cast<int>(task % tiles) * latent_tile_rows;
          AttendArgs args;
          args.layout = one;
          args.qkv = row(chunk.memory.qkv, segment.first_row + begin, own_.qkv_width());
          args.qkv_stride = own_.qkv_width();
          args.out = row(attended(chunk), segment.first_row + begin, own_.heads_width());
          args.kv = row(work_.latent.expanded, h, one.head_elements());
          args.pages = &page;
          args.num_rows = std::min(latent_tile_rows, num_rows - begin);
          args.first_position = segment.first_position + begin;
          args.first_head = first + h;
          args.num_heads = 1;
          args.scale = shape_.logit_scale();
          args.scratch = work_.latent.scratch.as<float>() + thread * work_.latent.scratch_floats;
          kernels_.attend(args);
        });
  }
}

void CpuLayers::absorb_queries(const CpuChunk& chunk, int layer, std::span<const LatentRow> rows) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const LatentAttention& latent = shape_.latent;
  const int nope = shape_.head_dim - latent.rope;
  const auto rope_bytes = static_cast<std::size_t>(latent.rope * element_bytes_);
  clear_parts();
  for (int h = 0; h < own_.num_heads; ++h) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const char* q = row(chunk.memory.qkv, rows[i].row, own_.qkv_width()) +
                      std::int64_t{h} * shape_.head_dim * element_bytes_;
      char* to = row(work_.latent.queries, static_cast<std::int64_t>(i) * own_.num_heads + h,
                     latent.width());
      add_part(q, to);
      std::memcpy(to + latent.keys * element_bytes_, q + nope * element_bytes_, rope_bytes);
    }
    add_products(weights.latent_heads[static_cast<std::size_t>(h)].k_down, std::ssize(rows));
  }
  gemm_->run(parts_.products);
}

void CpuLayers::attend_absorbed(CpuChunk& chunk, int layer, std::span<const LatentRow> rows) {
  const CpuLayer& weights = layers_[static_cast<std::size_t>(layer)];
  const LatentAttention& latent = shape_.latent;
  const KvLayout absorbed = absorbed_layout(layout(layer), shape_);
  absorb_queries(chunk, layer, rows);
  const int groups = (own_.num_heads + latent_head_group - 1) / latent_head_group;
  parallel_tasks(
      options_.num_threads, std::ssize(rows) * groups, [&](std::int64_t task, int thread) {
        const std::int64_t i = task / groups;
        AttendArgs args;
        args.layout = absorbed;
        args.qkv = row(work_.latent.queries, i * own_.num_heads, latent.width());
        args.qkv_stride = std::int64_t{own_.num_heads} * latent.width();
        args.out = row(work_.latent.outputs, i * own_.num_heads, latent.keys);
        args.kv = kv_.layers[static_cast<std::size_t>(layer)].data();
        args.pages = rows[static_cast<std::size_t>(i)].segment->pages;
        args.num_rows = 1;
        args.first_position = rows[static_cast<std::size_t>(i)].position;
        args.first_head = static_cast<int>(task % groups) * latent_head_group;
        args.num_heads = std::min(latent_head_group, own_.num_heads - args.first_head);
        args.scale = shape_.logit_scale();
        args.scratch = work_.latent.scratch.as<float>() + thread * work_.latent.scratch_floats;
        kernels_.attend(args);
      });
  clear_parts();
  for (int h = 0; h < own_.num_heads; ++h) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      add_part(
          row(work_.latent.outputs, static_cast<std::int64_t>(i) * own_.num_heads + h, latent.keys),
          row(attended(chunk), rows[i].row, own_.heads_width()) +
              std::int64_t{h} * own_.value_dim * element_bytes_);
    }
    add_products(weights.latent_heads[static_cast<std::size_t>(h)].v_up, std::ssize(rows));
  }
  gemm_->run(parts_.products);
}

}  // namespace atl::compute
