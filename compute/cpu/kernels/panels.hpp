#pragma once
// GEMM with weights in panels, included once per instruction set (see simd.hpp for why all is
// anonymous).
//
// Weights (see pack.hpp) are widened to float32 when they are loaded, which is exact, or multiplied
// as pairs of bfloat16. Every element is one chain of multiply-adds over k: neither the other rows
// nor the cutting of k, rows and columns change it.

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/codes.hpp"
#include "compute/cpu/kernels/pack.hpp"
#include "compute/cpu/kernels/rows.hpp"
#include "compute/cpu/kernels/simd.hpp"

#if defined(ATL_CODES_TO_PAIRS)
#include "compute/cpu/kernels/fp8_rows.hpp"
#endif

namespace atl::compute {
namespace {

/// Rows of a block: with two vectors of columns each they fill the registers.
constexpr int panel_height = lanes == 16 ? 12 : 6;

/// Rows as a panel of T's multiplies them, and its two vectors of one k.
template <class T>
struct PanelFactor {
  using row = float;
  using vector = Vec;
};
inline void load_panel(const Bf16* p, Vec (&v)[2]) {
  v[0] = load_even(p);
  v[1] = load_odd(p);
}
template <class T>
inline void load_panel(const T* p, Vec (&v)[2]) {
  v[0] = load(p);
  v[1] = load(p + lanes);
}

/// Elements [first, first + count) of a row, as panels of T's multiply them, of task.k in all.
template <class T>
inline void load_row(const PanelTask& /*task*/, const T* row, int first, int count, float* to) {
  to_float<T>(row + first, to, count);
}

#if defined(ATL_BF16_PAIRS)
template <>
struct PanelFactor<Bf16Pair> {
  using row = Bf16Pair;
  using vector = Pairs;
};
inline void load_panel(const Bf16Pair* p, Pairs (&v)[2]) {
  v[0] = load_pairs(p->of);
  v[1] = load_pairs(p[lanes].of);
}
inline void load_row(const PanelTask& task, const Bf16Pair* row, int first, int count,
                     Bf16Pair* to) {
  to[count - 1] = {};  // an odd k ends with half a pair
  const int left = task.k - 2 * first;
  const auto numbers = static_cast<std::size_t>(left < 2 * count ? left : 2 * count);
  std::memcpy(to, row + first, numbers * sizeof(Bf16));
}
#endif

/// A block of panel_gemm: rows of `a` by panels `panel_stride` elements apart, over `k`.
template <class T>
struct PanelBlock {
  const typename PanelFactor<T>::row* a;
  std::int64_t a_stride;
  const T* panels;
  std::int64_t panel_stride;
  int num_panels;
  int k;
  float* c;
  std::int64_t c_stride;
  bool first;             // else sums continue from c
  std::int64_t ahead[2];  // bytes from a k of a panel to the lines fetched with it
};

/// Rows rows by Panels panels.
template <int Rows, int Panels, class T>
[[gnu::noinline]] void panel_block(const PanelBlock<T>& block, int panel) {
  constexpr bool two_lines = sizeof(T) * panel_columns > 64;
  const auto* a = block.a;
  const std::int64_t a_stride = block.a_stride;
  const std::int64_t panel_stride = block.panel_stride;
  const std::int64_t ahead[2] = {block.ahead[0], block.ahead[1]};
  const T* b = block.panels + panel * panel_stride;
  float* c = block.c + panel * panel_columns;
  Vec acc[Rows][Panels][2];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        acc[r][p][v] = block.first ? broadcast(0)
                                   : load(c + r * block.c_stride + p * panel_columns + v * lanes);
      }
    }
  }
  for (int i = 0; i < block.k; ++i) {
    typename PanelFactor<T>::vector w[Panels][2];
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
      const T* at = b + p * panel_stride + i * panel_columns;
      load_panel(at, w[p]);
      __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead[0]);
      if constexpr (two_lines) __builtin_prefetch(reinterpret_cast<const char*>(at) + ahead[1]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const auto x = broadcast(a[r * a_stride + i]);
#pragma GCC unroll 8
      for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) acc[r][p][v] = fma(x, w[p][v], acc[r][p][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int p = 0; p < Panels; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        store(c + r * block.c_stride + p * panel_columns + v * lanes, acc[r][p][v]);
      }
    }
  }
}

/// Panels [first, num_panels) of the block, Panels at once as long as that goes.
template <int Rows, int Panels, class T>
int panel_groups(PanelBlock<T>& block, int first) {
  // The hardware's prefetching ends with each 4 KiB.
  if (block.num_panels > 1) {
    block.ahead[0] = 2048 / Panels;
    block.ahead[1] = block.ahead[0] + 64;
  }
  for (; first + Panels <= block.num_panels; first += Panels) {
    panel_block<Rows, Panels>(block, first);
  }
  return first;
}

/// Rows rows by all panels of the block. Few rows take several panels at once: a multiply-add waits
/// for the one before it in its chain, and a vector or two of chains leave the units idle.
template <int Rows, class T>
void panel_rows(PanelBlock<T> block) {
  int p = 0;
  if constexpr (Rows == 1) p = panel_groups<Rows, 4>(block, p);
  if constexpr (3 * Rows <= panel_height) p = panel_groups<Rows, 2>(block, p);
  panel_groups<Rows, 1>(block, p);
}

template <class T, int Rows = panel_height>
void panel_rows(int rows, const PanelBlock<T>& block) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return panel_rows<T, Rows - 1>(rows, block);
  }
  panel_rows<Rows>(block);
}

/// A task's rows, as panels of T's multiply them, in blocks of rows that lie evenly apart.
template <class T>
struct PanelRows {
  using Row = typename PanelFactor<T>::row;
  static_assert(sizeof(Row) == sizeof(float));
  static constexpr bool as_they_are = sizeof(T) == sizeof(Row);  // nothing has to be widened
  struct Block {
    const Row* a;
    std::int64_t stride;
    int rows;
  };
  Block blocks[panel_gemm_rows];
  int count = 0;

  /// Rows that lie evenly apart, in blocks of equal height.
  void add(const Row* a, std::int64_t stride, int rows) {
    const int parts = (rows + panel_height - 1) / panel_height;
    for (int i = 0; i < parts; ++i) {
      const int first = rows * i / parts;
      blocks[count++] = {a + first * stride, stride, rows * (i + 1) / parts - first};
    }
  }

  /// The rows where they are; false where that would be many blocks, or half a pair is left over.
  bool find(const PanelTask& task) {
    constexpr int step = __is_same(T, Bf16Pair) ? 2 : 1;
    if (!as_they_are || task.k % step != 0) return false;
    const int most = (task.num_rows + panel_height - 1) / panel_height + 2;
    const auto apart = [&task](int r) {  // bytes from row r - 1 to row r
      return static_cast<const char*>(task.rows[r]) - static_cast<const char*>(task.rows[r - 1]);
    };
    for (int r = 0; r < task.num_rows;) {
      int end = r + 1;
      const std::int64_t stride = end < task.num_rows ? apart(end) : 0;
      while (end < task.num_rows && apart(end) == stride) ++end;
      if (stride % static_cast<int>(sizeof(Row)) != 0) return false;
      if (count + (end - r + panel_height - 1) / panel_height > most) return false;
      add(static_cast<const Row*>(task.rows[r]), stride / static_cast<int>(sizeof(Row)), end - r);
      r = end;
    }
    return true;
  }

  /// Elements [first, first + k) of the rows, in scratch memory.
  void copy(const PanelTask& task, int first, int k) {
    Row* to = reinterpret_cast<Row*>(task.scratch);
    // Not a multiple of a page, which the rows of a block would share a part of L1 for.
    const int stride = k + row_padding;
    for (int r = 0; r < task.num_rows; ++r) {
      load_row(task, static_cast<const T*>(task.rows[r]), first, k, to + r * stride);
    }
    count = 0;
    add(to, stride, task.num_rows);
  }
  static constexpr int row_padding = 16;

  /// How many k copy() has room for.
  static int depth(int rows) {
    const int room = static_cast<int>(panel_scratch_floats) / rows - row_padding;
    return rows <= panel_height && room > 1024 ? 1024 : room;
  }
};

/// From how many rows on a panel is widened once for all blocks: float16 costs more than bfloat16.
template <class T>
constexpr int widened_from = sizeof(T) == 4
                                 ? panel_gemm_rows + 1
                                 : (__is_same(T, F16) ? 2 * panel_height + 1 : panel_gemm_rows);

/// A slice of one panel by all rows; element `first` of the rows is its first. Every block fetches
/// a part of the next slice.
template <class T, class All>
void panel_slice(PanelBlock<T> block, const PanelRows<All>& rows, int first, bool fetches) {
  constexpr std::int64_t line = 64;
  constexpr std::int64_t bytes = panel_columns * sizeof(T);  // of one k
  float* c = block.c;
  for (int i = 0; i < rows.count; ++i) {
    const auto& some = rows.blocks[i];
    block.a = some.a + first;
    block.a_stride = some.stride;
    block.c = c;
    block.ahead[0] = fetches && i * line < bytes ? block.k * bytes + i * line : 0;
    block.ahead[1] = block.ahead[0];
    panel_rows(some.rows, block);
    c += some.rows * block.c_stride;
  }
}

/// The block's one panel as float32 in `wide`.
template <class T>
PanelBlock<float> widened(const PanelBlock<T>& block, float* wide) {
  for (int i = 0; i < block.k; ++i) {
    Vec v[2];
    const T* at = block.panels + i * panel_columns;
    load_panel(at, v);
    __builtin_prefetch(reinterpret_cast<const char*>(at) + block.k * panel_columns * sizeof(T));
    store(wide + i * panel_columns, v[0]);
    store(wide + i * panel_columns + lanes, v[1]);
  }
  return {nullptr, 0, wide, 0, 1, block.k, block.c, block.c_stride, block.first, {}};
}

/// One panel, of `block.k`, by all rows of a task.
template <class T>
void panel_slices(const PanelBlock<T>& block, const PanelRows<T>& rows, const PanelTask& task) {
  alignas(64) float wide[max_panel_slice_bytes / sizeof(float)];
  const bool widens = task.num_rows >= widened_from<T>;
  const int depth =
      task.slice_bytes / panel_columns / static_cast<int>(widens ? sizeof(float) : sizeof(T));
  for (int k = 0; k < block.k; k += depth) {
    PanelBlock<T> slice = block;
    slice.panels += std::int64_t{k} * panel_columns;
    slice.k = block.k - k < depth ? block.k - k : depth;
    slice.first = block.first && k == 0;
    if constexpr (!PanelRows<T>::as_they_are) {
      if (widens) {
        panel_slice(widened(slice, wide), rows, k, /*fetches=*/false);
        continue;
      }
    }
    panel_slice(slice, rows, k, /*fetches=*/true);
  }
}

/// panel_gemm() of `all_k` elements T of a panel.
template <class T>
void panel_product(const PanelTask& task, int all_k) {
  PanelRows<T> rows;
  const bool in_place = rows.find(task);
  const int depth = in_place ? all_k : PanelRows<T>::depth(task.num_rows);
  for (int first = 0; first < all_k; first += depth) {
    PanelBlock<T> block{};
    block.k = all_k - first < depth ? all_k - first : depth;
    if (!in_place) rows.copy(task, first, block.k);
    block.panels = static_cast<const T*>(task.panels) + std::int64_t{first} * panel_columns;
    block.panel_stride = std::int64_t{all_k} * panel_columns;
    block.c = task.c;
    block.c_stride = task.c_stride;
    block.first = first == 0;
    if (rows.count == 1) {
      block.a = rows.blocks[0].a;
      block.a_stride = rows.blocks[0].stride;
      block.num_panels = task.num_panels;
      panel_rows(task.num_rows, block);
      continue;
    }
    block.num_panels = 1;
    for (int p = 0; p < task.num_panels; ++p) {
      panel_slices(block, rows, task);
      block.panels += block.panel_stride;
      block.c += panel_columns;
    }
  }
}

/// Products of panels that hold codes, for rows whose element `begin` is the first at hand.
template <class T>
struct CodedSlices {
  using Row = typename PanelElement<T>::type;
  using Wide = typename UnpackedElement<T>::type;

  const PanelTask& task;
  const CodedPanels<T>& panels;
  const PanelRows<Row>& rows;
  int begin;
  Wide* wide;  // [max_panel_slice_bytes]

  /// Panels [p, p + count), `at_once` of them or fewer, by elements [first, end) of the rows: a
  /// slice becomes elements in L1, which are multiplied as they would be without codes.
  void multiply(int p, int count, int at_once, int first, int end) const {
    const int depth = task.slice_bytes / (at_once * panel_columns) / static_cast<int>(sizeof(Wide));
    PanelBlock<Wide> block{};
    block.num_panels = count;
    block.panels = wide;
    block.panel_stride = std::int64_t{depth} * panel_columns;
    block.c = task.c + p * panel_columns;
    block.c_stride = task.c_stride;
    for (int k = first; k < end; k += depth) {
      block.k = end - k < depth ? end - k : depth;
      block.first = k == 0;
      for (int i = 0; i < count; ++i) {
        panels.unpack(p + i, k, block.k, wide + i * block.panel_stride);
      }
      panel_slice(block, rows, k - begin, /*fetches=*/false);
    }
  }

#if defined(ATL_CODES_TO_PAIRS)
  /// Few rows, by what fp8_rows.hpp has for groups whose columns have one scale. False: they are
  /// not few, or other codes.
  bool multiply_few(int end) const {
    if constexpr (panel_step<T> != 2) {
      return false;
    } else {
      const bool fits = task.coding.code == Code::fp8 && task.rounded == DType::bfloat16 &&
                        has_vbmi && rows.count == 1 && task.num_rows <= fp8_rows_at_once;
      if (!fits) return false;
      const int at_once = fp8_panels_at_once(task.num_rows);
      for (int p = 0; p < task.num_panels;) {
        const int count = task.num_panels - p < at_once ? 1 : at_once;
        for (int first = begin; first < end;) {
          const int group = first / panels.group_steps();
          const int of_group = (group + 1) * panels.group_steps();
          const int stop = of_group < end ? of_group : end;
          multiply_group(p, count, first, stop);
          first = stop;
        }
        p += count;
      }
      return true;
    }
  }

 private:
  /// Elements [first, stop), which are of one group.
  void multiply_group(int p, int count, int first, int stop) const {
    float scales[4];
    bool each_one = true;
    for (int i = 0; i < count; ++i) {
      scales[i] = one_scale(panels.scales_at(p + i, first / panels.group_steps()));
      each_one = each_one && scales[i] == scales[i];
    }
    if (!each_one) return multiply(p, count, count, first, stop);
    const auto& block = rows.blocks[0];
    const Fp8Piece piece{block.a + first - begin, block.stride, panels.codes_at(p, first),
                         panels.panel_bytes(),    stop - first, task.c + p * panel_columns,
                         task.c_stride,           first == 0};
    fp8_piece(piece, task.num_rows, count, scales);
  }
#endif
};

/// panel_product() of panels that hold codes.
template <class T>
void coded_product(const PanelTask& task) {
  using Slices = CodedSlices<T>;
  alignas(64) typename Slices::Wide wide[max_panel_slice_bytes / sizeof(typename Slices::Wide)];
  const CodedPanels<T> panels(task);
  PanelRows<typename Slices::Row> rows;
  const bool in_place = rows.find(task);
  const int all_k = panels.steps();
  const int rows_depth = in_place ? all_k : PanelRows<typename Slices::Row>::depth(task.num_rows);
  for (int begin = 0; begin < all_k; begin += rows_depth) {
    const int end = all_k - begin < rows_depth ? all_k : begin + rows_depth;
    if (!in_place) rows.copy(task, begin, end - begin);
    const Slices slices{task, panels, rows, begin, wide};
#if defined(ATL_CODES_TO_PAIRS)
    if (slices.multiply_few(end)) continue;
#endif
    const int at_once = rows.count == 1 && task.num_rows <= panel_height / 3 ? 4 : 1;
    for (int p = 0; p < task.num_panels; p += at_once) {
      slices.multiply(p, task.num_panels - p < at_once ? task.num_panels - p : at_once, at_once,
                      begin, end);
    }
  }
}

template <class T>
void panel_gemm(const PanelTask& task) {
  if (task.coding.used()) return coded_product<T>(task);
  panel_product<typename PanelElement<T>::type>(task, (task.k + panel_step<T> - 1) / panel_step<T>);
}

}  // namespace
}  // namespace atl::compute
