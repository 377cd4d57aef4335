#pragma once
// The parts of attention_wgmma.cuh that move data: blocks of keys and values on their way to shared
// memory, and what of them may not be multiplied.

#include <algorithm>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/kernels/wgmma.cuh"
#include "compute/cuda/plan/attention_plan.hpp"

namespace atl::compute::cuda {

/// Where something lies that a thread needs again; `workspace` is AttentionArgs::totals.
enum class Place { registers, shared, workspace };

/// A variant of the kernel: element type, head_dim rounded up, warpgroups along the rows (64 each)
/// and along the columns of the result, slices of keys or values in the ring that copies run ahead
/// in, and where queries and the totals of splits lie. A slice is a block of keys, or, of more than
/// 256 dimensions, a half of it.
template <class T, int head_dim_, int row_groups_, int column_groups_, int stages_, Place queries_,
          Place totals_>
struct GroupVariant {
  using Type = T;
  static constexpr int head_dim = head_dim_;
  static constexpr int column_groups = column_groups_;
  static constexpr int stages = stages_;
  static constexpr bool queries_held = queries_ == Place::registers;
  static constexpr Place totals = totals_;
  static constexpr int rows = row_groups_ * group_rows;
  static constexpr int threads = row_groups_ * column_groups * group_threads;
  static constexpr int columns = head_dim / column_groups;  ///< of one warpgroup's result
  static constexpr int slices = head_dim > 256 ? 2 : 1;     ///< of a block
  static constexpr int slice = head_dim / slices;
  static constexpr int slice_elements = key_block * slice;
  static constexpr int strip_bytes = key_block * line_bytes;  ///< 64 columns of a block
  static_assert(head_dim % line_elements == 0 && columns % line_elements == 0);
  static_assert(slices == 1 ? stages % 2 == 0 : column_groups == 2 && stages == 5);

  struct alignas(tile_alignment) Shared {
    T ring[stages * slice_elements];                ///< tiles: a line is a key
    T queries[queries_held ? 8 : rows * head_dim];  ///< tiles: a line is a row
    /// Of each thread, 16 bytes of all threads beside each other.
    alignas(access_bytes) float totals[totals_ == Place::shared ? rows * head_dim : 4];
    int first_bad;  ///< position of the first key whose value clear_bad_values() cleared
  };
};

/// How a block's threads share out lines of `width` elements by 16-byte pieces.
template <class T, int width, int num_lines, int threads>
struct LinePieces {
  static constexpr int per_line = width / wide<T>;
  static constexpr int line_step = threads / per_line;
  static constexpr int count = num_lines / line_step;  ///< lines of one thread
  static_assert(threads % per_line == 0 && num_lines % line_step == 0);
};

template <class T>
__device__ inline void copy_piece(T* to, const T* from, bool exists) {
  copy_async(to, from, exists);
  note_shared_write(to, access_bytes);
}

/// Copies blocks of 64 keys and of their values into the ring, slice by slice: the first block's
/// keys; then, in each step, the next block's keys and the values of the one before.
template <class V>
class BlockCopier {
 public:
  using T = typename V::Type;

  __device__ BlockCopier(const KvPages& kv, const std::int32_t* pages, int kv_head, int first,
                         int end, T* ring)
      : kv_(kv), left_(end - first + key_block), token_(first % kv.page_tokens), ring_(ring) {
    pages_ = pages + first / kv.page_tokens;
    head_ = std::int64_t{kv_head} * kv.page_tokens * kv.head_dim;
    page_elements_ = std::int64_t{kv.num_kv_heads} * kv.page_tokens * kv.head_dim;
    next_page_ = *pages_;
  }

  /// Starts copying the first block's keys, a group of copies for each slice.
  __device__ void begin() {
    enter_block();
#pragma unroll
    for (int i = 0; i < V::slices; ++i) {
      copy(kv_.keys, next_place_, left_ - key_block, i);
      commit_copies();
    }
    end_step();
  }
  /// Starts a whole step's copies, if there are any; one group of copies either way.
  __device__ void advance_step() {
    if (left_ > key_block) {
      enter_block();
      copy(kv_.keys, next_place_, left_ - key_block, 0);
    } else {
      next_slot();
    }
    if (left_ > 0) {
      copy(kv_.values, place_, left_, 0);
    } else {
      next_slot();
    }
    end_step();
    commit_copies();
  }
  /// The same of one slice of a step of four.
  __device__ void advance_slice() {
    if (part_ < 2 && left_ > key_block) {
      if (part_ == 0) enter_block();
      copy(kv_.keys, next_place_, left_ - key_block, part_);
    } else if (part_ >= 2 && left_ > 0) {
      copy(kv_.values, place_, left_, part_ - 2);
    } else {
      next_slot();
    }
    if (part_ == 3) end_step();
    part_ = (part_ + 1) % 4;
    commit_copies();
  }

 private:
  /// Finds the next block's place; its page was looked up one block ahead, so that nobody waits.
  __device__ void enter_block() {
    next_place_ = next_page_ * page_elements_ + head_ + std::int64_t{token_} * kv_.head_dim;
    token_ += key_block;
    if (token_ == kv_.page_tokens) {
      token_ = 0;
      if (left_ > 2 * key_block) next_page_ = *++pages_;
    }
  }
  __device__ void end_step() {
    place_ = next_place_;
    left_ -= key_block;
  }
  __device__ void next_slot() {
    slot_ = slot_ + 1 == V::stages ? 0 : slot_ + 1;
  }

  /// Copies a slice into the next slot. Zeros stand for keys and dimensions that do not exist.
  __device__ void copy(const void* base, std::int64_t place, int lines, int slice) {
    T* to = ring_ + slot_ * V::slice_elements;
    const T* const begin = static_cast<const T*>(base);
    using P = LinePieces<T, V::slice, key_block, V::threads>;
    const int line = static_cast<int>(threadIdx.x) / P::per_line;
    const int column = static_cast<int>(threadIdx.x) % P::per_line * wide<T>;
    const int d = kv_.head_dim;
    const T* piece = begin + place + line * d + slice * V::slice + column;
    const bool column_exists = slice * V::slice + column < d;
#pragma unroll(V::slices > 1 ? 1 : P::count)
    for (int i = 0; i < P::count; ++i) {
      const bool exists = line + i * P::line_step < lines && column_exists;
      copy_piece(to + tile_offset(line + i * P::line_step, column, key_block),
                 exists ? piece + i * P::line_step * d : begin, exists);
    }
    next_slot();
  }

  const KvPages& kv_;
  int left_;   ///< keys from the block whose values come in this step to the end
  int token_;  ///< of the block after the next in its page
  T* ring_;
  const std::int32_t* pages_;
  std::int64_t head_;
  std::int64_t page_elements_;
  std::int64_t place_ = 0;  ///< where the keys (and values) of this step's block begin
  std::int64_t next_place_ = 0;
  std::int32_t next_page_;
  int slot_ = 0;
  int part_ = 0;  ///< of the step, where it is cut
};

/// Position that no key has.
inline constexpr int no_position = 0x7fffffff;

/// As clear_non_finite() of attention_tile.cuh: for a block of keys of which some rows see only a
/// part, clears what is not finite in its values and notes the first such key. By all threads of
/// the block; barriers before and after are the caller's.
template <class T, int elements>
__device__ void clear_bad_values(T* values, int start, int threads, int* first_bad) {
  // What carries the magnitude of an element into its sign's place, in both halves of a word.
  constexpr std::uint32_t to_sign = std::is_same_v<T, __nv_bfloat16> ? 0x00800080U : 0x04000400U;
  constexpr int per_line = line_elements / wide<T>;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < elements / wide<T>; i += threads) {
    auto* piece = reinterpret_cast<uint4*>(values) + i;
    std::uint32_t words[4] = {piece->x, piece->y, piece->z, piece->w};
    std::uint32_t bad = 0;
#pragma unroll
    for (std::uint32_t& word : words) {
      const std::uint32_t mine = ((word & 0x7fff7fffU) + to_sign) & 0x80008000U;
      bad |= mine;
      word &= ~((mine >> 15U) * 0xffffU);
    }
    if (bad == 0) continue;
    *piece = uint4{words[0], words[1], words[2], words[3]};
    note_shared_write(piece, access_bytes);
    atomicMin(first_bad, start + i / per_line % key_block);
  }
}

}  // namespace atl::compute::cuda
