#pragma once
// One block of threads, as device code compiled by the host's compiler sees it.
//
// Every thread of a block is a fiber with its own stack. A fiber runs until it ends or must wait
// for others: at a barrier of the block or in a collective of its warp. Blocks run one after
// another. The order of blocks, warps and lanes comes from the emulator's seed, so that code that
// lacks a synchronisation meets an order in which that shows.

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace emulated {

inline constexpr int warp_size = 32;

/// What the lanes of one warp do together. `lanes[i]` is what lane i handed over, null for lanes
/// outside the mask, already ended or beyond the block.
using ApplyCollective = void (*)(void* const* lanes);

/// Waits until all threads of the block are here; returns how many passed `predicate`.
int block_barrier(bool predicate, const char* name, const std::source_location& where);

/// Waits until all living lanes of `mask` are here with the same operation at the same place, and
/// returns after `apply` has run once for all of them.
void warp_collective(unsigned mask, void* mine, ApplyCollective apply, const char* name,
                     const std::source_location& where);

/// Lane of the calling thread in its warp, and the thread's place in its block.
int lane_of_thread();
int index_of_thread();
/// Living lanes of the calling thread's warp.
unsigned living_lanes();

/// The asynchronous copies of the calling thread. What one writes is lost at once and there no
/// earlier than it must be: when the thread waits for its group. A null `from` writes zeros.
void copy_async(void* to, const void* from, std::size_t bytes);
void commit_copies();
/// Completes all groups of this thread but the newest `pending`.
void wait_copies(int pending);

/// Reports an error of the device code (block and thread are named) and ends the process.
[[noreturn]] void device_error(const char* name, const std::source_location& where,
                               const char* what);

/// The block's dynamic shared memory, which ends right before a page that nobody may touch.
void* dynamic_shared_memory();
/// Shared memory by its address on the device.
void* shared_pointer(unsigned address);

/// Of the products of warpgroups (wgmma.cpp): a new block begins; and what is wrong with how they
/// were left at the block's end, or null.
void begin_block_of_products(std::uint64_t seed);
const char* unfinished_products();

/// A kernel with its arguments, as it waits in a stream.
struct Launch {
  cudaLaunchConfig_t config{};
  std::source_location where;
  std::function<void()> body;  ///< what one thread runs
};

/// Checks the configuration and enqueues.
cudaError_t launch(const void* kernel, Launch launch);

/// Runs all blocks of a launch; called by the queue.
void run_grid(const Launch& launch);

/// Where the running device code is, for the report of a bad access; empty when none runs.
const char* describe_running_thread();

}  // namespace emulated
