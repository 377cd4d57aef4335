#include "app/run/shared_kv.hpp"

#include <cstring>

#include "compute/error.hpp"

namespace atl {

SharedKv::SharedKv(const Groups& groups, const ModelShape& shape, const compute::Part& part,
                   DType dtype, compute::Backend& backend)
    : groups_(groups),
      shape_(shape),
      part_(part),
      backend_(backend),
      head_bytes_(static_cast<std::size_t>(shape.head_dim) * size_of(dtype)) {
  const int members = part.attention.members;
  for (int place = 0; place < members && members > 1; ++place) {
    heads_of_.push_back(
        compute::share_attention(shape, members, place, part.attention.output).heads);
  }
}

int SharedKv::owner() const {
  return groups_.job()
      .of(Share::sequences)
      .group_of[static_cast<std::size_t>(groups_.world().rank())];
}

std::int64_t SharedKv::num_kept() const {
  return part_.attention.shared() ? std::ssize(part_.attention.heads) : shape_.num_kv_heads;
}

void SharedKv::spread(const std::vector<compute::HeadGroup>& heads, std::int64_t count,
                      const std::byte* part, std::byte* whole) const {
  const auto row = static_cast<std::size_t>(shape_.num_kv_heads) * head_bytes_;
  for (std::int64_t i = 0; i < count; ++i, whole += row) {
    for (const compute::HeadGroup& head : heads) {
      std::memcpy(whole + static_cast<std::size_t>(head.kv_head) * head_bytes_, part, head_bytes_);
      part += head_bytes_;
    }
  }
}

void SharedKv::save(int layer, std::span<const std::int32_t> pages, std::int64_t first,
                    std::int64_t count, std::span<std::byte> keys, std::span<std::byte> values) {
  const auto save_to = [&](void* k, void* v) {
    backend_.finish(
        backend_.save_kv(layer, pages, static_cast<int>(first), static_cast<int>(count), k, v));
  };
  if (alone()) return save_to(keys.data(), values.data());
  std::string mine;
  if (has(layer)) {
    const auto bytes = static_cast<std::size_t>(count * num_kept()) * head_bytes_;
    mine.resize(2 * bytes);
    save_to(mine.data(), mine.data() + bytes);
  }
  gather_parts(count, mine, keys, values, layer);
}

void SharedKv::gather_parts(std::int64_t count, const std::string& mine, std::span<std::byte> keys,
                            std::span<std::byte> values, int layer) const {
  const std::vector<std::string> parts = groups_.of(Share::sequences).gather(mine, 0);
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    if (parts[rank].empty()) continue;
    const auto* bytes = reinterpret_cast<const std::byte*>(parts[rank].data());
    const std::size_t half = parts[rank].size() / 2;
    if (heads_of_.empty()) {
      require(half == keys.size(), "internal: layer {} has keys of {} bytes, not {}", layer, half,
              keys.size());
      std::memcpy(keys.data(), bytes, half);
      std::memcpy(values.data(), bytes + half, half);
      continue;
    }
    const auto& heads = heads_of_[rank % heads_of_.size()];
    spread(heads, count, bytes, keys.data());
    spread(heads, count, bytes + half, values.data());
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
  if (!part_.attention.shared()) return load_from(keys.data(), values.data());
  const auto row = static_cast<std::size_t>(shape_.num_kv_heads) * head_bytes_;
  own_keys_.clear();
  own_values_.clear();
  for (std::int64_t i = 0; i < count; ++i) {
    for (const compute::HeadGroup& head : part_.attention.heads) {
      const std::size_t at =
          static_cast<std::size_t>(i) * row + static_cast<std::size_t>(head.kv_head) * head_bytes_;
      own_keys_.insert(own_keys_.end(), keys.begin() + static_cast<std::ptrdiff_t>(at),
                       keys.begin() + static_cast<std::ptrdiff_t>(at + head_bytes_));
      own_values_.insert(own_values_.end(), values.begin() + static_cast<std::ptrdiff_t>(at),
                         values.begin() + static_cast<std::ptrdiff_t>(at + head_bytes_));
    }
  }
  load_from(own_keys_.data(), own_values_.data());
}

}  // namespace atl
