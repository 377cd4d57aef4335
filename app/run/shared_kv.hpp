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
  /// layer, as [count, kv_heads, head_dim] each, on the rank that speaks for them.
  void save(int layer, std::span<const std::int32_t> pages, std::int64_t first, std::int64_t count,
            std::span<std::byte> keys, std::span<std::byte> values);
  /// The way back, on each of the ranks: what this one has of such rows goes into its cache.
  void load(int layer, std::span<const std::int32_t> pages, std::int64_t first, std::int64_t count,
            std::span<const std::byte> keys, std::span<const std::byte> values);

 private:
  bool has(int layer) const { return layer >= part_.first_layer && layer < part_.end_layer; }
  std::int64_t num_kept() const;  // KV heads of this rank
  /// Rows [count, heads of a share] into, or out of, whole ones.
  void spread(const std::vector<compute::HeadGroup>& heads, std::int64_t count,
              const std::byte* part, std::byte* whole) const;
  void gather_parts(std::int64_t count, const std::string& mine, std::span<std::byte> keys,
                    std::span<std::byte> values, int layer) const;

  const Groups& groups_;
  const ModelShape& shape_;
  const compute::Part& part_;
  compute::Backend& backend_;
  std::size_t head_bytes_;
  std::vector<std::vector<compute::HeadGroup>> heads_of_;  // [tp]
  std::vector<std::byte> own_keys_, own_values_;
};

}  // namespace atl
