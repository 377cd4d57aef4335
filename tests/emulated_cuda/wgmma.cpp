// Hopper's tensor cores on the emulated device. A warp computes its own 16 of the 64 rows, so that
// collectives of a warp are enough; what the four warps of a group issue is compared at the end.

#include "tests/emulated_cuda/include/wgmma.h"

#include <array>
#include <cstdio>
#include <deque>
#include <vector>

#include "tests/emulated_cuda/block.hpp"
#include "tests/emulated_cuda/settings.hpp"

namespace emulated {
namespace {

constexpr int rows_of_warp = 16;
constexpr int depth = 16;
constexpr int max_columns = 256;
constexpr unsigned unit_bytes = 16;
constexpr unsigned shared_bytes = 1U << 18U;
constexpr unsigned all = 0xffffffffU;

/// A product of one warp that is under way.
struct Product {
  std::array<WarpgroupProduct, warp_size> lanes;
  Where where;
};

struct Warp {
  std::deque<Product> products;  ///< not done yet, oldest first
  std::vector<int> groups;       ///< how many of them belong to each committed group
  int open = 0;                  ///< of a group that is not committed
  bool begun = false;
  std::uint64_t issued = 0;
};

struct Units {
  std::vector<int> writer = std::vector<int>(shared_bytes / unit_bytes, -1);
  std::vector<std::vector<unsigned>> of_thread;
};

std::vector<Warp> warps;
Units unfenced;
Random choice(0);

Warp& own_warp() {
  const auto index = static_cast<std::size_t>(index_of_thread() / warp_size);
  if (index >= warps.size()) warps.resize(index + 1);
  return warps[index];
}

/// A matrix in shared memory.
struct Matrix {
  Matrix(std::uint64_t description, bool by_depth, const Where& where)
      : start(static_cast<unsigned>(description & 0x3fffU) << 4U),
        strip(static_cast<unsigned>(description >> 16U & 0x3fffU) << 4U),
        eight_lines(static_cast<unsigned>(description >> 32U & 0x3fffU) << 4U),
        across(by_depth),
        from(where) {
    if (description >> 62U != 1)
      device_error("wgmma", where, "its matrix is not in the swizzle of 128 bytes");
    if ((description >> 49U & 7U) != 0) device_error("wgmma", where, "its base offset is not 0");
    if (eight_lines % 1024 != 0 || (across && strip % 1024 != 0) ||
        (across ? start % 1024 : start % 1024 / 128) != 0)
      device_error("wgmma", where, "its tiles are not aligned to 1024 bytes");
  }

  /// Where element `k` of line `n` of the operand lies.
  unsigned place(int n, int k) const {
    const int line = across ? k : n;
    unsigned at = start + static_cast<unsigned>(line / 8) * eight_lines +
                  static_cast<unsigned>(line % 8) * 128;
    at += across ? static_cast<unsigned>(n / 64) * strip + static_cast<unsigned>(n % 64) * 2
                 : static_cast<unsigned>(k) * 2;
    return at ^ ((at >> 7U & 7U) << 4U);
  }
  std::uint16_t bits(int n, int k) const {
    const unsigned at = place(n, k);
    const int writer = unfenced.writer[at / unit_bytes];
    if (writer >= 0) {
      char what[120];
      std::snprintf(what, sizeof what,
                    "reads what thread %d wrote without a fence for products after it", writer);
      device_error("wgmma", from, what);
    }
    std::uint16_t value = 0;
    std::memcpy(&value, shared_pointer(at), sizeof value);
    return value;
  }

  unsigned start;
  unsigned strip;
  unsigned eight_lines;
  bool across;
  Where from;
};

float value_of(std::uint16_t bits, bool bfloat16) {
  if (bfloat16) return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16U);
  return __half2float(__ushort_as_half(bits));
}

// The places of A's and D's elements in registers, as PTX's manual has them.
using Left = float[rows_of_warp][depth];
void read_left(const Product& product, int warp_in_group, Left& a) {
  const WarpgroupProduct& first = product.lanes[0];
  if (first.a == nullptr) {
    const Matrix matrix(first.a_matrix, false, product.where);
    for (int r = 0; r < rows_of_warp; ++r)
      for (int k = 0; k < depth; ++k)
        a[r][k] = value_of(matrix.bits(warp_in_group * rows_of_warp + r, k), first.bfloat16);
    return;
  }
  for (int lane = 0; lane < warp_size; ++lane)
    for (int i = 0; i < 8; ++i) {
      const std::uint32_t word = product.lanes[lane].a[i / 2];
      const auto bits = static_cast<std::uint16_t>(i % 2 == 0 ? word : word >> 16U);
      a[lane / 4 + i / 2 % 2 * 8][lane % 4 * 2 + i % 2 + i / 4 * 8] =
          value_of(bits, first.bfloat16);
    }
}

void run(const Product& product, int warp_in_group) {
  const WarpgroupProduct& first = product.lanes[0];
  Left a;
  read_left(product, warp_in_group, a);
  static float b[depth][max_columns];
  const Matrix matrix(first.b_matrix, first.b_by_depth, product.where);
  for (int k = 0; k < depth; ++k)
    for (int n = 0; n < first.columns; ++n) b[k][n] = value_of(matrix.bits(n, k), first.bfloat16);
  const int half = settings().other_wgmma ? 8 : 0;  // upper and lower rows change places
  for (int r = 0; r < rows_of_warp; ++r) {
    float sums[max_columns] = {};
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < first.columns; ++n) sums[n] += a[r][k] * b[k][n];
    for (int n = 0; n < first.columns; ++n) {
      float& d = product.lanes[r % 8 * 4 + n % 8 / 2].d[n / 8 * 4 + (r ^ half) / 8 * 2 + n % 2];
      d = first.add ? d + sums[n] : sums[n];
    }
  }
}

void run_oldest(Warp& warp, std::size_t left) {
  const int warp_in_group = index_of_thread() / warp_size % 4;
  while (warp.products.size() > left) {
    run(warp.products.front(), warp_in_group);
    warp.products.pop_front();
    if (warp.groups.empty()) {
      --warp.open;
    } else if (--warp.groups.front() == 0) {
      warp.groups.erase(warp.groups.begin());
    }
  }
}

void need_warp(const char* name, const Where& where) {
  if (living_lanes() != all) device_error(name, where, "needs all 32 lanes of the warp");
}

struct Issue {
  WarpgroupProduct product;
  const Where* where;
};

void issue(void* const* lanes) {
  Warp& warp = own_warp();
  Product product;
  for (int i = 0; i < warp_size; ++i) product.lanes[i] = static_cast<Issue*>(lanes[i])->product;
  product.where = *static_cast<Issue*>(lanes[0])->where;
  const WarpgroupProduct& first = product.lanes[0];
  for (const WarpgroupProduct& other : product.lanes)
    if (other.columns != first.columns || other.a_matrix != first.a_matrix ||
        other.b_matrix != first.b_matrix || other.add != first.add)
      device_error("wgmma", product.where, "has other operands in other lanes");
  if (!warp.begun)
    device_error("wgmma", product.where, "is not preceded by begin_products() in its group");
  warp.products.push_back(product);
  ++warp.open;
  ++warp.issued;
  if (choice.below(2) == 0) run_oldest(warp, choice.below(2) == 0 ? 0 : warp.products.size() / 2);
}

void commit(void* const*) {
  Warp& warp = own_warp();
  warp.begun = false;
  if (warp.open > 0) warp.groups.push_back(warp.open);
  warp.open = 0;
}

}  // namespace

unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(static_cast<const std::byte*>(pointer) -
                               static_cast<const std::byte*>(shared_pointer(0)));
}

void wgmma_begin(const Where& where) {
  need_warp("wgmma.fence", where);
  constexpr auto apply = [](void* const*) { own_warp().begun = true; };
  warp_collective(all, nullptr, apply, "wgmma.fence", where);
}

void wgmma_issue(const WarpgroupProduct& product, const Where& where) {
  need_warp("wgmma", where);
  Issue mine{product, &where};
  warp_collective(all, &mine, &issue, "wgmma", where);
}

void wgmma_commit(const Where& where) {
  need_warp("wgmma.commit_group", where);
  warp_collective(all, nullptr, &commit, "wgmma.commit_group", where);
}

void wgmma_wait(int pending, const Where& where) {
  need_warp("wgmma.wait_group", where);
  constexpr auto apply = [](void* const* lanes) {
    Warp& warp = own_warp();
    warp.begun = false;
    const auto kept = static_cast<std::size_t>(*static_cast<int*>(lanes[0]));
    std::size_t left = static_cast<std::size_t>(warp.open);
    for (std::size_t i = 0; i < kept && i < warp.groups.size(); ++i)
      left += static_cast<std::size_t>(warp.groups[warp.groups.size() - 1 - i]);
    run_oldest(warp, left);
  };
  warp_collective(all, &pending, apply, "wgmma.wait_group", where);
}

void note_shared_write(const void* to, int bytes) {
  const auto thread = static_cast<std::size_t>(index_of_thread());
  if (thread >= unfenced.of_thread.size()) unfenced.of_thread.resize(thread + 1);
  const unsigned first = shared_address(to) / unit_bytes;
  const unsigned last = (shared_address(to) + static_cast<unsigned>(bytes) - 1) / unit_bytes;
  for (unsigned unit = first; unit <= last; ++unit) {
    unfenced.writer[unit] = static_cast<int>(thread);
    unfenced.of_thread[thread].push_back(unit);
  }
}

void fence_async_proxy() {
  const auto thread = static_cast<std::size_t>(index_of_thread());
  if (thread >= unfenced.of_thread.size()) return;
  for (const unsigned unit : unfenced.of_thread[thread])
    if (unfenced.writer[unit] == static_cast<int>(thread)) unfenced.writer[unit] = -1;
  unfenced.of_thread[thread].clear();
}

void begin_block_of_products(std::uint64_t seed) {
  warps.clear();
  choice = Random(seed);
  for (auto& units : unfenced.of_thread) {
    for (const unsigned unit : units) unfenced.writer[unit] = -1;
    units.clear();
  }
}

const char* unfinished_products() {
  for (std::size_t i = 0; i < warps.size(); ++i) {
    if (!warps[i].products.empty()) return "ends with products that it did not wait for";
    if (warps[i].issued != warps[i / 4 * 4].issued)
      return "had warps of one warpgroup issue different products";
  }
  return nullptr;
}

}  // namespace emulated
