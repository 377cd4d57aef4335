#pragma once
// Rows sorted into groups, token order kept inside each, in two launches.
//
// The first: a block of 16 warps owns a tile of consecutive rows, a warp takes some of them one
// after the other, counts what it puts into each group and notes each one's number among them. Then
// end_tile() adds what the warps before it counted. The second, place_kernel: a block per tile adds
// what the tiles before it counted and the groups before. All sums are of integers, and a row's
// place follows from the order of rows alone.

#include <algorithm>

#include "compute/cuda/kernels/device.cuh"
#include "compute/cuda/plan/workspace.hpp"

namespace atl::compute::cuda {

inline constexpr int group_threads = 512;
inline constexpr int group_warps = group_threads / warp_lanes;
/// Groups are numbered through; places start anew in each range of them.
inline constexpr int max_group_ranges = 3;

/// What is counted, and where the tiles' counts meet.
struct Groups {
  int count = 0;
  int ends[max_group_ranges] = {};  ///< of the ranges; 0: there are fewer
  std::int32_t* counts = nullptr;   ///< [count], result; null: nobody asks
  std::int32_t* scratch = nullptr;  ///< group_scratch_ints(count)
};

/// How rows are dealt out.
struct GroupTiles {
  explicit GroupTiles(int rows)
      : rows_per_warp(std::max(1, divide_up(rows, group_warps * max_group_tiles))),
        rows_per_tile(group_warps * rows_per_warp),
        count(divide_up(rows, rows_per_tile)) {}
  int rows_per_warp;
  int rows_per_tile;
  int count;
};

/// The rows that this thread's warp takes: [first, last).
struct WarpRows {
  int first;
  int last;
};
__device__ inline WarpRows rows_of_warp(int rows_per_warp, int num_rows) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int first = (static_cast<int>(blockIdx.x) * group_warps + warp) * rows_per_warp;
  return {min(first, num_rows), min(first + rows_per_warp, num_rows)};
}

/// counts [warps][groups], in shared memory, become zeros; returns this warp's.
__device__ inline std::int32_t* begin_tile(const Groups& groups, std::int32_t* counts) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < group_warps * groups.count; i += group_threads) counts[i] = 0;
  __syncthreads();
  return counts + thread / warp_lanes * groups.count;
}

/// Calls placed.add(i, before) for all (row, choice) of this warp, where before(group) is what the
/// tile's warps before it counted; the tile's counts go to the scratch memory.
template <class Placed>
__device__ void end_tile(const Groups& groups, std::int32_t* counts, const Placed& placed,
                         const WarpRows& rows, int choices) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  for (int group = thread; group < groups.count; group += group_threads) {
    std::int32_t total = 0;
    for (int w = 0; w < group_warps; ++w) {
      const std::int32_t count = counts[w * groups.count + group];
      counts[w * groups.count + group] = total;
      total += count;
    }
    groups.scratch[static_cast<int>(blockIdx.x) * groups.count + group] = total;
  }
  __syncthreads();
  const std::int32_t* before = counts + thread / warp_lanes * groups.count;
  const std::int64_t end = std::int64_t{rows.last} * choices;
  for (std::int64_t i = std::int64_t{rows.first} * choices + thread % warp_lanes; i < end;
       i += warp_lanes) {
    placed.add(i, [before](int group) { return before[group]; });
  }
}

/// The sum over lanes up to this one.
__device__ inline std::int32_t warp_scan(std::int32_t x, int lane) {
#pragma unroll
  for (int distance = 1; distance < warp_lanes; distance *= 2) {
    const std::int32_t before = __shfl_up_sync(all_lanes, x, distance);
    x += lane >= distance ? before : 0;
  }
  return x;
}

/// sums[i] = values[begin] + .. + values[i - 1] for i in [begin, end); shared memory, the caller
/// has passed a barrier; `partial` has a number for each warp.
__device__ inline void exclusive_scan(const std::int32_t* values, int begin, int end,
                                      std::int32_t* sums, std::int32_t* partial) {
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  std::int32_t carry = 0;
  for (int first = begin; first < end; first += group_threads) {
    const int i = first + static_cast<int>(threadIdx.x);
    const std::int32_t value = i < end ? values[i] : 0;
    const std::int32_t through = warp_scan(value, lane);
    if (lane == warp_lanes - 1) partial[warp] = through;
    __syncthreads();
    const std::int32_t of_warps = warp_scan(lane < group_warps ? partial[lane] : 0, lane);
    const std::int32_t before = __shfl_sync(all_lanes, of_warps, max(warp - 1, 0));
    if (i < end) sums[i] = carry + (warp > 0 ? before : 0) + through - value;
    carry += __shfl_sync(all_lanes, of_warps, warp_lanes - 1);
    __syncthreads();
  }
}

constexpr std::size_t place_shared_bytes(int num_groups) {
  return static_cast<std::size_t>(3 * num_groups + group_warps) * sizeof(std::int32_t);
}

/// Calls placed.add(i, before) for all (row, choice) of tile blockIdx.x, where before(group) is
/// what comes before the tile's first row of that group; block 0 also writes the counts.
template <class Placed>
__global__ void __launch_bounds__(group_threads)
    place_kernel(Placed placed, Groups groups, int num_tiles, std::int64_t per_tile,
                 std::int64_t num_placed) {
  std::int32_t* totals = dynamic_shared<std::int32_t>();  // [groups], of all tiles
  std::int32_t* before = totals + groups.count;           // of the tiles before this one
  std::int32_t* firsts = before + groups.count;           // where each group begins
  std::int32_t* partial = firsts + groups.count;
  const int thread = static_cast<int>(threadIdx.x);
  const int tile = static_cast<int>(blockIdx.x);
  for (int group = thread; group < groups.count; group += group_threads) {
    totals[group] = 0;
    before[group] = 0;
  }
  __syncthreads();
  // A thread adds up every `stride`-th tile for one group.
  const int stride = max(1, group_threads / groups.count);
  for (int item = thread; item < stride * groups.count; item += group_threads) {
    const int group = item % groups.count;
    std::int32_t total = 0;
    std::int32_t prefix = 0;
#pragma unroll 8
    for (int i = item / groups.count; i < num_tiles; i += stride) {
      const std::int32_t count = groups.scratch[i * groups.count + group];
      total += count;
      prefix += i < tile ? count : 0;
    }
    atomicAdd(&totals[group], total);
    atomicAdd(&before[group], prefix);
  }
  __syncthreads();
  int begin = 0;
  for (const int end : groups.ends) {
    if (end > begin) exclusive_scan(totals, begin, end, firsts, partial);
    begin = max(begin, end);
  }
  for (int group = thread; group < groups.count; group += group_threads) {
    if (tile == 0 && groups.counts != nullptr) groups.counts[group] = totals[group];
    before[group] += firsts[group];
  }
  __syncthreads();
  const std::int64_t end = min((tile + 1) * per_tile, num_placed);
  for (std::int64_t i = tile * per_tile + thread; i < end; i += group_threads) {
    placed.add(i, [before](int group) { return before[group]; });
  }
}

template <class Placed>
void launch_place(cudaStream_t stream, std::string_view name, const Placed& placed,
                  const Groups& groups, int num_rows, int choices) {
  const GroupTiles tiles(num_rows);
  // Without rows too: the counts are then zeros.
  launch(stream, name, &place_kernel<Placed>, dim3(static_cast<unsigned>(std::max(1, tiles.count))),
         group_threads, place_shared_bytes(groups.count), placed, groups, tiles.count,
         std::int64_t{tiles.rows_per_tile} * choices, std::int64_t{num_rows} * choices);
}

inline std::size_t tile_shared_bytes(const Groups& groups) {
  return static_cast<std::size_t>(group_warps * groups.count) * sizeof(std::int32_t);
}

}  // namespace atl::compute::cuda
