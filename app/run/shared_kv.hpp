#pragma once
// Keys and values of a sequence as whole rows, where several ranks have its layers and heads.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "app/run/groups.hpp"
#include "compute/backend.hpp"
#include "compute/weights.hpp"

namespace atl {

/// Elements that are kept of a position in one layer.
struct KvWidths {
  std::int64_t keys = 0;    ///< KV heads * head_dim, or of latent attention what is kept
  std::int64_t values = 0;  ///< KV heads * values_dim, or none
};
KvWidths kv_widths(const ModelShape& shape, int layer);
/// Of a position in any layer keys and values, one behind the other, fill at most two halves of so
/// many elements; of models whose keys and values are alike one half is the keys.
std::int64_t kv_half_row(const ModelShape& shape);

class SharedKv {
 public:
  /// `part` is this rank's. All of it outlives this.
  SharedKv(const Groups& groups, const ModelShape& shape, const compute::Part& part, DType dtype,
           compute::Backend& backend);

  bool alone() const { return groups_.members(Share::sequences).size() == 1; }
  bool speaks() const { return groups_.of(Share::sequences).rank() == 0; }
  /// Of the job's owners, the number of this rank's; and how many there are.
  int owner() const;
  int num_owners() const { return groups_.job().num_owners(); }
  /// Collective over the sequences' ranks: what the one that speaks for them says.
  bool agreed(bool mine) const { return groups_.of(Share::sequences).broadcast_value(mine, 0); }

  /// Collective over the sequences' ranks: keys and values of positions [first, first + count) in a
  /// layer, as rows of two halves (kv_half_row), each [count, half], on the rank that speaks for
  /// them.
  void save(int layer, std::span<const std::int32_t> pages, std::int64_t first, std::int64_t count,
            std::span<std::byte> keys, std::span<std::byte> values);
  /// The way back, on each of the ranks: what this one has of such rows goes into its cache.
  void load(int layer, std::span<const std::int32_t> pages, std::int64_t first, std::int64_t count,
            std::span<const std::byte> keys, std::span<const std::byte> values);

  /// On one rank, of what it has: the first `rows` positions of a page to another.
  void copy(std::int32_t from, std::int32_t to, std::int32_t rows);

 private:
  bool has(int layer) const { return layer >= part_.first_layer && layer < part_.end_layer; }
  /// Elements of this rank.
  KvWidths own_widths(int layer) const;
  /// Heads of member `place`, of `head` elements each, from rows [count, its heads] into whole
  /// ones, or back.
  void spread(int layer, int place, std::int64_t head, std::int64_t count, const std::byte* part,
              std::byte* whole) const;
  void pick(int layer, std::int64_t head, std::int64_t count, const std::byte* whole,
            std::vector<std::byte>& part) const;
  /// Whole keys and values from what ranks sent.
  void join(int layer, std::int64_t count, const std::vector<std::string>& parts);
  /// whole_keys_ and whole_values_ to the two halves of rows, or back.
  void to_halves(int layer, std::int64_t count, std::span<std::byte> first,
                 std::span<std::byte> second) const;
  void from_halves(int layer, std::int64_t count, std::span<const std::byte> first,
                   std::span<const std::byte> second);
  void resize_whole(int layer, std::int64_t count);

  const Groups& groups_;
  const ModelShape& shape_;
  const compute::Part& part_;
  compute::Backend& backend_;
  std::size_t element_;
  std::vector<std::byte> whole_keys_, whole_values_;
  std::vector<std::byte> own_keys_, own_values_;
};

}  // namespace atl
