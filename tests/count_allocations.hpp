#pragma once
// Counts C++ allocations of all threads; include it in exactly one source of a test program, whose
// operator new it replaces.

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <string_view>

namespace counted {

inline std::atomic<bool> counting{false};
inline std::atomic<long> allocations{0};

/// oneDNN builds a small map of arguments inside every execute; that is not ours to change.
inline bool from_one_dnn(void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 &&
         std::string_view(info.dli_fname).find("libdnnl") != std::string_view::npos;
}

inline void* allocate(std::size_t size, void* caller) {
  if (counting.load() && !from_one_dnn(caller)) ++allocations;
  void* block = std::malloc(size == 0 ? 1 : size);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

}  // namespace counted

void* operator new(std::size_t size) {
  return counted::allocate(size, __builtin_return_address(0));
}
void* operator new[](std::size_t size) {
  return counted::allocate(size, __builtin_return_address(0));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size);
}
// Not inlined: the compiler would see free() of what operator new gave, and warn.
[[gnu::noinline]] void operator delete(void* block) noexcept {
  std::free(block);
}
[[gnu::noinline]] void operator delete[](void* block) noexcept {
  std::free(block);
}
[[gnu::noinline]] void operator delete(void* block, std::size_t) noexcept {
  std::free(block);
}
[[gnu::noinline]] void operator delete[](void* block, std::size_t) noexcept {
  std::free(block);
}
