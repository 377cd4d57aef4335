#pragma once
// RoPE, and keys and values on their way into the cache, included once per instruction set (see
// simd.hpp for why all is anonymous).

#include <cmath>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/kv_pages.hpp"
#include "compute/cpu/kernels/norm.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// Tokens whose keys are stored together: one cache line of a panel's row holds 16 bfloat16 pairs.
constexpr int rope_rows = 16;

/// cos and sin of one position, [head_dim / 2] each, and what a whole_row norm multiplies by.
struct Rotation {
  alignas(64) float cosine[max_head_dim / 2 + lanes];
  alignas(64) float sine[max_head_dim / 2 + lanes];
  float q_scale;
  float k_scale;
};

inline void rotation_of(const RopeTables& tables, int position, Rotation& rotation) {
  const int half = tables.dims / 2;
  const double* a = tables.coarse + std::int64_t{position / 64} * 2 * half;
  const double* b = tables.fine + std::int64_t{position % 64} * 2 * half;
  for (int i = 0; i < half; ++i) {
    rotation.cosine[i] = static_cast<float>(a[i] * b[i] - a[half + i] * b[half + i]);
    rotation.sine[i] = static_cast<float>(a[half + i] * b[i] + a[i] * b[half + i]);
  }
}

/// How a head is normalised and rotated.
struct HeadForm {
  int dim = 0;
  int rotated = 0;          ///< dimensions, the first ones
  bool norm_after = false;  ///< scale and weight come after the rotation
};

/// out = round(rotate(in * scale * weight)), weight may be null; `out` may be `in`.
template <class T>
inline void rotate_head(const T* in, float scale, const float* weight, const HeadForm& form,
                        const Rotation& rotation, T* out) {
  const int half = form.rotated / 2;
  const auto scaled = [&](Vec x, int at, std::int64_t count) {
    return x * broadcast(scale) * load(weight + at, count);
  };
  for (int i = 0; i < half; i += lanes) {
    Vec a = load(in + i, half - i);
    Vec b = load(in + half + i, half - i);
    if (weight != nullptr && !form.norm_after) {
      a = scaled(a, i, half - i);
      b = scaled(b, half + i, half - i);
    }
    const Vec c = load(rotation.cosine + i);
    const Vec s = load(rotation.sine + i);
    Vec first = fma(a, c, broadcast(0) - b * s);
    Vec second = fma(b, c, a * s);
    if (weight != nullptr && form.norm_after) {
      first = scaled(first, i, half - i);
      second = scaled(second, half + i, half - i);
    }
    store(out + i, first, half - i);
    store(out + half + i, second, half - i);
  }
  for (int i = form.rotated; i < form.dim; i += lanes) {
    const Vec x = load(in + i, form.dim - i);
    store(out + i, weight != nullptr ? scaled(x, i, form.dim - i) : x, form.dim - i);
  }
}

/// Writes keys [count][head_dim] of consecutive tokens into a page, a panel row at a time.
template <class T>
inline void store_keys(const KvLayout& layout, const T* keys, int count, int token, T* head) {
  T* panel = head + std::int64_t{token / panel_tokens} * panel_tokens * layout.head_dim;
  const int d = layout.head_dim;
  if constexpr (__is_same(T, Bf16)) {
    for (int i = 0; i < d; i += 2) {
      T* to = panel + key_offset(panel, i, token % panel_tokens);
      for (int t = 0; t < count; ++t) std::memcpy(to + 2 * t, keys + t * d + i, 2 * sizeof(T));
    }
  } else {
    for (int i = 0; i < d; ++i) {
      T* to = panel + key_offset(panel, i, token % panel_tokens);
      for (int t = 0; t < count; ++t) to[t] = keys[t * d + i];
    }
  }
}

/// What a whole_row norm multiplies row number `row` by, whose q begins at `q`; else 1.
template <class T>
inline void scale_whole_row(const RopeArgs& args, const T* q, std::int64_t row,
                            Rotation& rotation) {
  rotation.q_scale = 1.0F;
  rotation.k_scale = 1.0F;
  if (args.norm != QkNorm::whole_row) return;
  const KvLayout& layout = args.layout;
  const int d = layout.head_dim;
  if (args.mean_squares != nullptr) {
    rotation.q_scale = inverse_rms(args.mean_squares[2 * row], args.eps);
    rotation.k_scale = inverse_rms(args.mean_squares[2 * row + 1], args.eps);
    return;
  }
  const T* k = q + layout.num_heads * d;
  rotation.q_scale = inverse_rms(mean_square_of_heads(q, layout.num_heads, d), args.eps);
  rotation.k_scale = inverse_rms(mean_square_of_heads(k, layout.num_kv_heads, d), args.eps);
}

/// Values of consecutive tokens, times args.value_scale.
template <class T>
inline void store_value(const RopeArgs& args, const T* value, T* to) {
  const int d = args.layout.value_dim;
  if (args.value_scale == 1) {
    std::memcpy(to, value, static_cast<std::size_t>(d) * sizeof(T));
    return;
  }
  for (int i = 0; i < d; i += lanes) {
    store(to + i, load(value + i, d - i) * broadcast(args.value_scale), d - i);
  }
}

/// rope() of `count` <= rope_rows rows that are consecutive tokens of one panel.
template <class T>
void rope_block(const RopeArgs& args, std::int64_t first, int count, Rotation* rotations, T* keys) {
  const KvLayout& layout = args.layout;
  const int d = layout.head_dim;
  const HeadForm form{d, args.tables.dims, args.norm_after};
  const int q_width = layout.num_heads * d;
  const int k_width = layout.num_kv_heads * d;
  const std::int64_t stride = q_width + k_width + layout.num_kv_heads * layout.value_dim;
  const bool whole = args.norm == QkNorm::whole_row;
  const bool each = args.norm == QkNorm::per_head;
  T* rows = static_cast<T*>(args.qkv) + first * stride;
  for (int t = 0; t < count; ++t) {
    T* q = rows + t * stride;
    Rotation& rotation = rotations[t];
    rotation_of(args.tables, args.positions[first + t], rotation);
    scale_whole_row(args, q, first + t, rotation);
    for (int h = 0; h < layout.num_heads; ++h) {
      const float scale = each ? inverse_rms(q + h * d, d, args.eps) : rotation.q_scale;
      const float* weight = each ? args.q_norm : (whole ? args.q_norm + h * d : nullptr);
      rotate_head(q + h * d, scale, weight, form, rotation, q + h * d);
    }
  }
  const int token = args.positions[first] % layout.page_tokens;
  for (int h = 0; h < layout.num_kv_heads; ++h) {
    T* head = const_cast<T*>(head_of<T>(layout, args.kv, args.pages[first], h));
    T* values = head + layout.keys_per_head() + std::int64_t{token} * layout.value_stride;
    const float* weight = each ? args.k_norm : (whole ? args.k_norm + h * d : nullptr);
    for (int t = 0; t < count; ++t) {
      const T* row = rows + t * stride + q_width;
      const T* k = row + h * d;
      const float scale = each ? inverse_rms(k, d, args.eps) : rotations[t].k_scale;
      rotate_head(k, scale, weight, form, rotations[t], keys + t * d);
      store_value(args, row + k_width + h * layout.value_dim,
                  values + std::int64_t{t} * layout.value_stride);
    }
    store_keys(layout, keys, count, token, head);
  }
}

template <class T>
void rope(const RopeArgs& args, std::int64_t begin, std::int64_t end) {
  Rotation rotations[rope_rows];
  alignas(64) T keys[rope_rows * max_head_dim];
  std::memset(rotations, 0, sizeof(rotations));  // padding lanes are read
  for (std::int64_t r = begin; r < end;) {
    // Rows up to the end of a cache line of the panel, as long as they follow one another.
    const int position = args.positions[r];
    int count = 1;
    while (count < rope_rows - position % rope_rows && r + count < end &&
           args.positions[r + count] == position + count &&
           args.pages[r + count] == args.pages[r]) {
      ++count;
    }
    rope_block(args, r, count, rotations, keys);
    r += count;
  }
}

/// Rows of latent attention, see LatentRopeArgs.
template <class T>
void latent_rope(const LatentRopeArgs& args, std::int64_t begin, std::int64_t end) {
  const KvLayout& layout = args.layout;
  const int turned = args.tables.dims;
  const int d = layout.head_dim;
  const int width = layout.latent_width - turned;
  const HeadForm form{turned, turned, false};
  Rotation rotation;
  std::memset(&rotation, 0, sizeof(rotation));  // padding lanes are read
  for (std::int64_t r = begin; r < end; ++r) {
    const int position = args.positions[r];
    rotation_of(args.tables, position, rotation);
    T* q = static_cast<T*>(args.q) + r * args.q_stride;
    for (int h = 0; h < layout.num_heads; ++h, q += d) {
      rotate_head<T>(q + d - turned, 1, nullptr, form, rotation, q + d - turned);
      if (args.temperature.beta == 0 || position < args.temperature.interval) continue;
      const auto passed = static_cast<float>(position / args.temperature.interval);
      const Vec factor = broadcast(1.0F + args.temperature.beta * std::log(1.0F + passed));
      for (int i = 0; i < d; i += lanes) store(q + i, load(q + i, d - i) * factor, d - i);
    }
    const T* latent = static_cast<const T*>(args.latents) + r * args.latent_row;
    T* to = static_cast<T*>(args.kv) + args.pages[r] * layout.page_elements() +
            std::int64_t{position % layout.page_tokens} * layout.latent_stride;
    const Vec scale = broadcast(inverse_rms(latent, width, args.eps));
    for (int i = 0; i < width; i += lanes) {
      store(to + i, load(latent + i, width - i) * scale * load(args.norm + i, width - i),
            width - i);
    }
    rotate_head<T>(latent + width, 1, nullptr, form, rotation, to + width);
  }
}

}  // namespace
}  // namespace atl::compute
