#pragma once
// Where keys and values lie in a page, included once per instruction set (see simd.hpp for why all
// is anonymous).

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/kernels/simd.hpp"

namespace atl::compute {
namespace {

/// Start of a kv_head's keys in a page; its values follow keys_per_head() elements later.
template <class T>
inline const T* head_of(const KvLayout& layout, const void* kv, std::int32_t page, int kv_head) {
  return static_cast<const T*>(kv) + page * layout.page_elements() +
         kv_head * layout.head_elements();
}

/// Elements between dimension i and token t of a key panel and its start.
inline std::int64_t key_offset(const Bf16* /*type*/, int i, int t) {
  return std::int64_t{i / 2} * (2 * panel_tokens) + 2 * t + i % 2;
}
template <class T>
inline std::int64_t key_offset(const T* /*type*/, int i, int t) {
  return std::int64_t{i} * panel_tokens + t;
}

}  // namespace
}  // namespace atl::compute
