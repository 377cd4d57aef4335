#include "app/plan/memory.hpp"

#include <algorithm>

#include "compute/memory_plan.hpp"

namespace atl {

PagesWanted pages_wanted(std::span<const std::int64_t> pages, int num_ranks) {
  PagesWanted wanted;
  std::int64_t all = 0;
  for (const std::int64_t count : pages) {
    wanted.largest = std::max(wanted.largest, count);
    all += count;
  }
  // An even share and one large request more: ranks differ in what they were given.
  wanted.useful = std::max(wanted.largest, std::min(all, all / num_ranks + 2 * wanted.largest));
  return wanted;
}

std::int64_t pages_in_host_memory(const compute::BackendOptions& options, double memory_bytes,
                                  const PagesWanted& wanted) {
  compute::BackendOptions one = options;
  one.num_pages = 1;
  const std::int64_t fitting = static_cast<std::int64_t>(memory_bytes * kv_share_of_host_memory) /
                               compute::cpu_kv_bytes(one);
  return std::min(wanted.useful, fitting);
}

std::int64_t pages_beside(const compute::BackendOptions& options, std::int64_t bytes) {
  compute::BackendOptions one = options;
  one.num_pages = 1;
  const compute::MemoryPlan plan = compute::cpu_memory_plan(one);
  return std::max<std::int64_t>(0, bytes - plan.weights - plan.buffers()) / plan.kv_cache;
}

bool fits_device(const compute::BackendOptions& options, std::int64_t bytes) {
  return compute::cuda_memory_plan(options).total() <= bytes;
}

std::int64_t fitting_pages(compute::BackendOptions options, std::int64_t bytes,
                           std::int64_t wanted) {
  const auto fitting = [&](std::int64_t pages) {
    options.num_pages = pages;
    return fits_device(options, bytes);
  };
  if (fitting(wanted)) return wanted;
  // Not by one division: other tables grow with the pages too. The need never falls with them.
  std::int64_t fit = 0;
  for (std::int64_t too_many = wanted; too_many - fit > 1;) {
    const std::int64_t pages = fit + (too_many - fit) / 2;
    (fitting(pages) ? fit : too_many) = pages;
  }
  return fit;
}

compute::BackendOptions for_any_routing(compute::BackendOptions options) {
  options.receive_rows = options.most_receive_rows;
  return options;
}

std::int64_t pages_on_device(const compute::BackendOptions& options, std::int64_t bytes,
                             const PagesWanted& wanted) {
  const std::int64_t beside_most = fitting_pages(for_any_routing(options), bytes, wanted.useful);
  const std::int64_t pages = fitting_pages(options, bytes, wanted.useful);
  return beside_most >= wanted.largest && 2 * beside_most >= pages ? beside_most : pages;
}

}  // namespace atl
