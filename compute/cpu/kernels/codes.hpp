#pragma once
// Weights kept as codes: into panels, and slices of these into elements. Included once per
// instruction set (see simd.hpp for why all is anonymous).
//
// A panel has group after group of k: its columns' scales, then codes, panel_step k at a time. Of
// those, column after column, `lanes` numbers are a vector. Codes of four bits lie in the low
// halves of bytes for the first panel_step vectors, in the high ones for the others.

#include <type_traits>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/pack.hpp"
#include "compute/cpu/kernels/simd.hpp"

#if defined(ATL_BF16_PAIRS) && !defined(ATL_SIMD_OF_LOOPS)
#define ATL_CODES_TO_PAIRS
#include "compute/cpu/kernels/codes_to_pairs.hpp"
#endif

namespace atl::compute {
namespace {

/// What codes become: pairs of bfloat16, or float32 that T's have been rounded to.
template <class T>
struct UnpackedElement {
  using type = std::conditional_t<panel_step<T> == 2, typename PanelElement<T>::type, float>;
};

/// Upper bytes of halves.
constexpr std::uint8_t mxfp4_table[16] = {0x00, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46,
                                          0x80, 0xb8, 0xbc, 0xbe, 0xc0, 0xc2, 0xc4, 0xc6};
constexpr std::uint8_t int4_table[16] = {0xc8, 0xc7, 0xc6, 0xc5, 0xc4, 0xc2, 0xc0, 0xbc,
                                         0x00, 0x3c, 0x40, 0x42, 0x44, 0x45, 0x46, 0x47};
#if defined(ATL_CODES_TO_PAIRS)
const bool has_vbmi = __builtin_cpu_supports("avx512vbmi") != 0;

/// The numbers of E4M3 codes without sign.
struct Fp8Numbers {
  alignas(64) float of[128] = {};
  constexpr Fp8Numbers() {
    float power = 1.0F / 512;
    for (int code = 0; code < 127; ++code) {
      const int fraction = code % 8;
      if (code >= 16 && fraction == 0) power *= 2;
      of[code] = power * static_cast<float>(code < 8 ? fraction : 8 + fraction);
    }
    of[127] = __builtin_nanf("");
  }
};
constexpr Fp8Numbers fp8_table;
constexpr const float (&fp8_numbers)[128] = fp8_table.of;
#endif

/// To the nearest bfloat16, ties to even, subnormal ones too; as float32.
inline Vec rounded_to_bf16(Vec v) {
  using Bits = std::uint32_t __attribute__((vector_size(sizeof(Vec))));
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fffU + ((bits >> 16U) & 1U)) & 0xffff0000U;
  const Bits nan = reinterpret_cast<Bits>(v != v);
  return reinterpret_cast<Vec>((nan & (bits | 0x400000U)) | (~nan & rounded));
}
inline Vec rounded_to_f16(Vec v) {
  F16 halves[lanes];
  store(halves, v);
  return load(halves);
}

/// The scales of a group's columns, one for each number of panel_step k.
template <class T>
inline void load_scales(Code code, const char* at, Vec (&scale)[2 * panel_step<T>]) {
  constexpr int step = panel_step<T>;
  alignas(64) float values[panel_columns * step];
  for (int c = 0; c < panel_columns; ++c) {
    float value = 0;
    if (code == Code::mxfp4) {
      const unsigned exponent = static_cast<std::uint8_t>(at[c]);
      const std::uint32_t bits = exponent == 0 ? 0x400000U : exponent << 23U;
      std::memcpy(&value, &bits, sizeof(value));
    } else {
      std::memcpy(&value, at + c * 4, sizeof(value));
    }
    for (int i = 0; i < step; ++i) values[c * step + i] = value;
  }
  for (int i = 0; i < 2 * step; ++i) scale[i] = load(values + i * lanes);
}

/// The panels of a task whose weight is kept as codes.
template <class T>
class CodedPanels {
 public:
  using Element = typename UnpackedElement<T>::type;

  explicit CodedPanels(const PanelTask& task)
      : task_(task),
        steps_((task.k + step - 1) / step),
        group_steps_(task.coding.group < steps_ * step ? task.coding.group / step : steps_),
        step_bytes_(panel_columns * step / (task.coding.code == Code::fp8 ? 1 : 2)),
        scales_bytes_(panel_columns * static_cast<int>(task.coding.scale_bytes())) {}

  int steps() const { return steps_; }
  /// Steps of one group of k; of the last one may be fewer.
  int group_steps() const { return group_steps_; }
  std::int64_t panel_bytes() const {
    const int groups = (steps_ + group_steps_ - 1) / group_steps_;
    return std::int64_t{groups} * scales_bytes_ + std::int64_t{steps_} * step_bytes_;
  }
  /// A group's scales, and the codes of its step number `first` of all.
  const char* scales_at(int panel, int group) const {
    return static_cast<const char*>(task_.panels) + panel * panel_bytes() +
           std::int64_t{group} * (scales_bytes_ + std::int64_t{group_steps_} * step_bytes_);
  }
  const char* codes_at(int panel, int first) const {
    const int group = first / group_steps_;
    return scales_at(panel, group) + scales_bytes_ +
           std::int64_t{first - group * group_steps_} * step_bytes_;
  }

  /// Elements [first, first + count) of panel number `panel`.
  void unpack(int panel, int first, int count, Element* out) const {
    switch (task_.coding.code) {
      case Code::fp8:
        return unpack_by<Code::fp8>(panel, first, count, out);
      case Code::mxfp4:
        return unpack_by<Code::mxfp4>(panel, first, count, out);
      case Code::int4:
        return unpack_by<Code::int4>(panel, first, count, out);
      case Code::none:
        break;
    }
  }

 private:
  static constexpr int step = panel_step<T>;
  static constexpr int vectors = 2 * step;
  static constexpr int fetched_ahead = 2048;  // the hardware's prefetching ends with each 4 KiB

  template <Code code>
  void unpack_by(int panel, int first, int count, Element* out) const {
    const bool special = code == Code::fp8 && task_.special;
    for (const int end = first + count; first < end;) {
      const int group = first / group_steps_;
      const int of_group = (group + 1) * group_steps_ < end ? (group + 1) * group_steps_ : end;
      const char* scales = scales_at(panel, group);
      const char* from = codes_at(panel, first);
      if (special) {
        unpack_group<code, true>(scales, from, of_group - first, out);
      } else {
        unpack_group<code, false>(scales, from, of_group - first, out);
      }
      out += std::int64_t{of_group - first} * panel_columns;
      first = of_group;
    }
  }

  template <Code code, bool special>
  void unpack_group(const char* scales, const char* from, int count, Element* out) const {
    Vec scale[vectors];
    load_scales<T>(code, scales, scale);
#if defined(ATL_CODES_TO_PAIRS)
    if constexpr (step == 2) {
      if (group_to_pairs<code>(scales, scale, from, count, out)) return;
    }
#endif
    const bool rounds = !__is_same(T, Bf16) || task_.rounded != DType::bfloat16;
    if (code == Code::fp8 && !special) {
      for (Vec& one : scale) one *= broadcast(256);
    }
    for (int i = 0; i < count; ++i, from += step_bytes_, out += panel_columns) {
      __builtin_prefetch(from + fetched_ahead);
      const auto* at = reinterpret_cast<const std::uint8_t*>(from);
      Vec v[vectors];
#pragma GCC unroll 4
      for (int j = 0; j < vectors; j += 2) {
        if constexpr (code == Code::fp8) {
          v[j] = load_e4m3(at + j * lanes);
          v[j + 1] = load_e4m3(at + (j + 1) * lanes);
        } else {
          load_by_table(at + j / 2 * lanes, code == Code::mxfp4 ? mxfp4_table : int4_table,
                        v[j / 2], v[j / 2 + step]);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) {
        if constexpr (special) v[j] = exact_e4m3(v[j]);
        const Vec product = v[j] * scale[j];
        store_element(rounds ? rounded(product) : product, out, j);
      }
    }
  }

#if defined(ATL_CODES_TO_PAIRS)
  /// unpack_group() where the shorter ways of codes_to_pairs.hpp do.
  template <Code code>
  bool group_to_pairs(const char* scales, const StepScales& scale, const char* from, int count,
                      Element* out) const {
    if (task_.rounded != DType::bfloat16) return false;
    if (code == Code::fp8 && has_vbmi) {
      float one = 0;
      std::memcpy(&one, scales, sizeof(one));
      unsigned others = 0;
      for (const Vec some : scale) {
        others |= _mm512_cmp_ps_mask(some, broadcast(one), _CMP_NEQ_UQ);
      }
      if (others == 0) {
        fp8_to_pairs_by_table(byte_tables(fp8_numbers, one), from, count, out);
        return true;
      }
    }
    if (code != Code::int4 && task_.special) return false;
    if (code == Code::fp8) {
      const Vec factor = broadcast(256);
      const StepScales times_256 = {scale[0] * factor, scale[1] * factor, scale[2] * factor,
                                    scale[3] * factor};
      fp8_to_pairs(times_256, from, count, out);
    } else if (code == Code::mxfp4) {
      mxfp4_to_pairs(scale, from, count, out);
    } else {
      halves_to_pairs(int4_table, scale, from, count, out);
    }
    return true;
  }
#endif

  /// From over 256, and NaN again.
  static Vec exact_e4m3(Vec v) {
    alignas(64) float values[lanes];
    store(values, v);
    for (float& value : values) {
      const bool is_nan = value == 1.875F || value == -1.875F;
      value = is_nan ? __builtin_nanf("") : value * 256;
    }
    return load(values);
  }

  Vec rounded(Vec v) const {
    if (task_.rounded == DType::bfloat16) return rounded_to_bf16(v);
    return task_.rounded == DType::float16 ? rounded_to_f16(v) : v;
  }

  /// Rounds a vector of float32 to T, as the vector number j of a panel's step.
  static void store_element(Vec v, Element* out, int j) {
    if constexpr (step == 2) {
      store(reinterpret_cast<Bf16*>(out) + j * lanes, v);
    } else if constexpr (__is_same(T, Bf16)) {
      store(out + j * lanes, rounded_to_bf16(v));
    } else if constexpr (__is_same(T, F16)) {
      store(out + j * lanes, rounded_to_f16(v));
    } else {
      store(out + j * lanes, v);
    }
  }

  const PanelTask& task_;
  int steps_;
  int group_steps_;
  int step_bytes_;
  int scales_bytes_;
};

/// A panel's groups of codes, as Kernels::pack_codes() writes them.
template <class T>
class CodePacker {
 public:
  CodePacker(const HostTensor& weight, int panel)
      : coding_(weight.coding),
        k_(static_cast<int>(weight.cols)),
        first_(panel * panel_columns),
        columns_(weight.rows - first_ < panel_columns ? static_cast<int>(weight.rows) - first_
                                                      : panel_columns),
        row_bytes_(coding_.row_bytes(k_)),
        rows_(static_cast<const std::uint8_t*>(weight.data) + first_ * row_bytes_),
        scales_(static_cast<const std::uint8_t*>(weight.scales) +
                first_ * coding_.groups(k_) * coding_.scale_bytes()) {}

  bool pack(std::uint8_t* to) {
    const int padded = (k_ + step - 1) / step * step;
    for (int begin = 0; begin < padded; begin += coding_.group) {
      const int end = padded - begin < coding_.group ? padded : begin + coding_.group;
      pack_scales(begin / coding_.group, to);
      to += panel_columns * coding_.scale_bytes();
      if (coding_.code == Code::fp8) {
        to = pack_bytes(begin, end, to);
      } else {
        to = pack_halves(begin, end, to);
      }
    }
    return special_;
  }

 private:
  static constexpr int step = panel_step<T>;

  void pack_scales(int group, std::uint8_t* to) {
    const auto bytes = static_cast<std::size_t>(coding_.scale_bytes());
    const std::int64_t groups = coding_.groups(k_);
    for (int c = 0; c < panel_columns; ++c) {
      const int of = c < columns_ ? c : 0;  // columns that are not there have numbers 0
      const std::uint8_t* from = scales_ + (of * groups + group) * static_cast<std::int64_t>(bytes);
      std::memcpy(to + static_cast<std::size_t>(c) * bytes, from, bytes);
      if (coding_.code == Code::mxfp4) {  // numbers stay normal ones
        special_ = special_ || *from < 2 || *from > 252;
      } else if (coding_.code == Code::fp8) {  // 256 times it has to be finite
        float scale = 0;
        std::memcpy(&scale, from, sizeof(scale));
        special_ = special_ || !(scale < 0x1p119F && scale > -0x1p119F);
      }
    }
  }

  std::uint8_t* pack_bytes(int begin, int end, std::uint8_t* to) {
    constexpr int step_bytes = panel_columns * step;
    for (int c = 0; c < columns_; ++c) note_nan(rows_ + c * row_bytes_, begin, end < k_ ? end : k_);
    int i = begin;
    if constexpr (step == 2) {  // pairs of bytes are to a panel what halves are
      constexpr int line = 32;
      const auto* from = reinterpret_cast<const F16*>(rows_);
      for (; columns_ == panel_columns && k_ % 2 == 0 && i + 2 * line <= end; i += 2 * line) {
        for (int word = 0; word < panel_columns / 2; word += 4) {
          pack_words(from + i / 2, k_ / 2, word, reinterpret_cast<F16*>(to));
        }
        to += line * step_bytes;
      }
    }
    for (; i < end; ++i) {
      for (int c = 0; c < panel_columns; ++c) {
        to[c * step + i % step] = c < columns_ && i < k_ ? rows_[c * row_bytes_ + i] : 0;
      }
      if (i % step == step - 1) to += step_bytes;
    }
    return to;
  }

  void note_nan(const std::uint8_t* row, int begin, int end) {
    unsigned found = 0;
    for (int i = begin; i < end; ++i) found |= ((row[i] & 127U) + 1U) & 128U;
    special_ = special_ || found != 0;
  }

  std::uint8_t* pack_halves(int begin, int end, std::uint8_t* to) const {
    constexpr int step_bytes = panel_columns * step / 2;
    for (int i = begin; i < end; i += step, to += step_bytes) {
      std::uint8_t numbers[panel_columns * step];
      for (int c = 0; c < panel_columns; ++c) {
        for (int j = i; j < i + step; ++j) numbers[c * step + j - i] = half_at(c, j);
      }
      for (int v = 0; v < step; ++v) {
        const std::uint8_t* low = numbers + v * lanes;
        const std::uint8_t* high = low + step * lanes;
        for (int lane = 0; lane < lanes; ++lane) {
          to[v * lanes + lane] = static_cast<std::uint8_t>(low[lane] | high[lane] << 4);
        }
      }
    }
    return to;
  }

  std::uint8_t half_at(int column, int i) const {
    if (column >= columns_ || i >= k_) return coding_.code == Code::int4 ? 8 : 0;  // number 0
    return (rows_[column * row_bytes_ + i / 2] >> (i % 2 * 4)) & 15U;
  }

  const Coding coding_;
  const int k_;
  const int first_;
  const int columns_;  // that there are; the others are 0
  const std::int64_t row_bytes_;
  const std::uint8_t* rows_;
  const std::uint8_t* scales_;
  bool special_ = false;
};

/// Kernels::pack_codes().
template <class T>
bool pack_codes(const HostTensor& weight, int panel, void* out) {
  return CodePacker<T>(weight, panel).pack(static_cast<std::uint8_t*>(out));
}

}  // namespace
}  // namespace atl::compute
