#include "app/run/shared_kv.hpp"

#include <algorithm>
#include <cstring>

#include "compute/error.hpp"

namespace atl {

KvWidths kv_widths(const ModelShape& shape, int layer) {
  if (shape.latent.used()) return {shape.latent.width(), 0};
  const std::int64_t heads = shape.attention(layer).num_kv_heads;
  return {heads * shape.head_dim, heads * shape.values_dim()};
}

std::int64_t kv_half_row(const ModelShape& shape) {
  std::int64_t most = 0;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const KvWidths widths = kv_widths(shape, layer);
    most = std::max(most, widths.keys + widths.values);
  }
  return (most + 1) / 2;
}

SharedKv::SharedKv(const Groups& groups, const ModelShape& shape, const compute::Part& part,
                   DType dtype, compute::Backend& backend)
    : groups_(groups), shape_(shape), part_(part), backend_(backend), element_(size_of(dtype)) {}

int SharedKv::owner() const {
  return groups_.job()
      .of(Share::sequences)
      .group_of[static_cast<std::size_t>(groups_.world().rank())];
}

KvWidths SharedKv::own_widths(int layer) const {
  if (shape_.latent.used()) return kv_widths(shape_, layer);
  const compute::OwnHeads own = compute::own_heads(shape_, part_.attention, layer);
  const std::int64_t heads = own.num_kv_heads();
  return {heads * own.head_dim, heads * own.value_dim};
}

void SharedKv::spread(int layer, int place, std::int64_t head, std::int64_t count,
                      const std::byte* part, std::byte* whole) const {
  compute::AttentionShare share = part_.attention;
  share.place = place;
  const auto bytes = static_cast<std::size_t>(head) * element_;
  const auto row = static_cast<std::size_t>(shape_.attention(layer).num_kv_heads) * bytes;
  const auto groups = compute::own_heads(shape_, share, layer).groups;
  for (std::int64_t i = 0; i < count; ++i, whole += row) {
    for (const compute::HeadGroup& group : groups) {
      std::memcpy(whole + static_cast<std::size_t>(group.kv_head) * bytes, part, bytes);
      part += bytes;
    }
  }
}

void SharedKv::pick(int layer, std::int64_t head, std::int64_t count, const std::byte* whole,
                    std::vector<std::byte>& part) const {
  const auto bytes = static_cast<std::size_t>(head) * element_;
  const auto row = static_cast<std::size_t>(shape_.attention(layer).num_kv_heads) * bytes;
  const auto groups = compute::own_heads(shape_, part_.attention, layer).groups;
  part.clear();
  for (std::int64_t i = 0; i < count; ++i, whole += row) {
    for (const compute::HeadGroup& group : groups) {
      const std::byte* from = whole + static_cast<std::size_t>(group.kv_head) * bytes;
      part.insert(part.end(), from, from + bytes);
    }
  }
}

void SharedKv::resize_whole(int layer, std::int64_t count) {
  const KvWidths widths = kv_widths(shape_, layer);
  whole_keys_.resize(static_cast<std::size_t>(count * widths.keys) * element_);
  whole_values_.resize(static_cast<std::size_t>(count * widths.values) * element_);
}

void SharedKv::to_halves(int layer, std::int64_t count, std::span<std::byte> first,
                         std::span<std::byte> second) const {
  const KvWidths widths = kv_widths(shape_, layer);
  const auto half = static_cast<std::size_t>(kv_half_row(shape_)) * element_;
  const auto keys = static_cast<std::size_t>(widths.keys) * element_;
  const auto values = static_cast<std::size_t>(widths.values) * element_;
  std::vector<std::byte> row(2 * half);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    std::copy_n(whole_keys_.begin() + static_cast<std::ptrdiff_t>(i * keys), keys, row.begin());
    std::copy_n(whole_values_.begin() + static_cast<std::ptrdiff_t>(i * values), values,
                row.begin() + static_cast<std::ptrdiff_t>(keys));
    std::memcpy(first.data() + i * half, row.data(), half);
    std::memcpy(second.data() + i * half, row.data() + half, half);
  }
}

void SharedKv::from_halves(int layer, std::int64_t count, std::span<const std::byte> first,
                           std::span<const std::byte> second) {
  resize_whole(layer, count);
  const KvWidths widths = kv_widths(shape_, layer);
  const auto half = static_cast<std::size_t>(kv_half_row(shape_)) * element_;
  const auto keys = static_cast<std::size_t>(widths.keys) * element_;
  const auto values = static_cast<std::size_t>(widths.values) * element_;
  std::vector<std::byte> row(2 * half);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    std::memcpy(row.data(), first.data() + i * half, half);
    std::memcpy(row.data() + half, second.data() + i * half, half);
    std::copy_n(row.begin(), keys, whole_keys_.begin() + static_cast<std::ptrdiff_t>(i * keys));
    std::copy_n(row.begin() + static_cast<std::ptrdiff_t>(keys), values,
                whole_values_.begin() + static_cast<std::ptrdiff_t>(i * values));
  }
}

void SharedKv::save(int layer, std::span<const std::int32_t> pages, std::int64_t first,
                    std::int64_t count, std::span<std::byte> keys, std::span<std::byte> values) {
  const auto save_to = [&](void* k, void* v) {
    backend_.finish(
        backend_.save_kv(layer, pages, static_cast<int>(first), static_cast<int>(count), k, v));
  };
  if (alone() && is_plain(shape_)) return save_to(keys.data(), values.data());
  resize_whole(layer, count);
  if (alone()) {
    save_to(whole_keys_.data(), whole_values_.data());
  } else {
    std::string mine;
    if (has(layer)) {
      const KvWidths own = own_widths(layer);
      const auto of_keys = static_cast<std::size_t>(count * own.keys) * element_;
      mine.resize(of_keys + static_cast<std::size_t>(count * own.values) * element_);
      save_to(mine.data(), mine.data() + of_keys);
    }
    const std::vector<std::string> parts = groups_.of(Share::sequences).gather(mine, 0);
    if (parts.empty()) return;
    join(layer, count, parts);
  }
  if (!keys.empty()) to_halves(layer, count, keys, values);
}

void SharedKv::join(int layer, std::int64_t count, const std::vector<std::string>& parts) {
  const int members = part_.attention.members;
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    if (parts[rank].empty()) continue;
    const auto* bytes = reinterpret_cast<const std::byte*>(parts[rank].data());
    if (members == 1 || shape_.latent.used()) {
      require(parts[rank].size() == whole_keys_.size() + whole_values_.size(),
              "internal: layer {} has keys and values of {} bytes, not {}", layer,
              parts[rank].size(), whole_keys_.size() + whole_values_.size());
      std::copy_n(bytes, whole_keys_.size(), whole_keys_.begin());
      std::copy_n(bytes + whole_keys_.size(), whole_values_.size(), whole_values_.begin());
      continue;
    }
    const int place = static_cast<int>(rank % static_cast<std::size_t>(members));
    const auto both = static_cast<std::size_t>(shape_.head_dim + shape_.values_dim());
    const std::size_t of_keys =
        parts[rank].size() / both * static_cast<std::size_t>(shape_.head_dim);
    spread(layer, place, shape_.head_dim, count, bytes, whole_keys_.data());
    spread(layer, place, shape_.values_dim(), count, bytes + of_keys, whole_values_.data());
  }
}

void SharedKv::load(int layer, std::span<const std::int32_t> pages, std::int64_t first,
                    std::int64_t count, std::span<const std::byte> keys,
                    std::span<const std::byte> values) {
  if (!has(layer)) return;
  const auto load_from = [&](const void* k, const void* v) {
    backend_.finish(
        backend_.load_kv(layer, pages, static_cast<int>(first), static_cast<int>(count), k, v));
  };
  const bool whole = !part_.attention.shared() || shape_.latent.used();
  if (whole && is_plain(shape_)) return load_from(keys.data(), values.data());
  from_halves(layer, count, keys, values);
  if (whole) return load_from(whole_keys_.data(), whole_values_.data());
  pick(layer, shape_.head_dim, count, whole_keys_.data(), own_keys_);
  pick(layer, shape_.values_dim(), count, whole_values_.data(), own_values_);
  load_from(own_keys_.data(), own_values_.data());
}

void SharedKv::copy(std::int32_t from, std::int32_t to, std::int32_t rows) {
  for (int layer = part_.first_layer; layer < part_.end_layer; ++layer) {
    const KvWidths own = own_widths(layer);
    own_keys_.resize(static_cast<std::size_t>(rows * own.keys) * element_);
    own_values_.resize(static_cast<std::size_t>(rows * own.values) * element_);
    backend_.finish(
        backend_.save_kv(layer, {&from, 1}, 0, rows, own_keys_.data(), own_values_.data()));
    backend_.finish(
        backend_.load_kv(layer, {&to, 1}, 0, rows, own_keys_.data(), own_values_.data()));
  }
}

}  // namespace atl
