#include "tests/emulated_cuda/block.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "tests/emulated_cuda/queue.hpp"
#include "tests/emulated_cuda/settings.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace emulated {
namespace {

namespace context = boost::context;

constexpr std::size_t stack_bytes = std::size_t{256} << 10U;
constexpr std::size_t max_shared_bytes = 232448;     // a block of capability 9.0
constexpr std::size_t default_shared_bytes = 49152;  // without cudaFuncSetAttribute

enum class State : unsigned char { runnable, at_barrier, in_collective, ended };

/// An asynchronous copy that has been asked for.
struct LateCopy {
  void* to;
  const void* from;
  std::size_t bytes;
  std::uint64_t group;
};

struct Thread {
  context::fiber fiber;
  std::deque<LateCopy> copies;   ///< oldest first
  std::uint64_t next_group = 0;  ///< of copies

  State state = State::ended;
  bool predicate = false;
  const char* name = nullptr;  ///< what it waits in
  std::source_location where;
  unsigned mask = 0;
  void* mine = nullptr;
  ApplyCollective apply = nullptr;
  void* fake_stack = nullptr;
};

bool same_place(const Thread& a, const Thread& b) {
  return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
         std::strcmp(a.where.file_name(), b.where.file_name()) == 0;
}

/// The threads of the one block that runs, and the place from which they are switched to.
class Block {
 public:
  void run(const Launch& launch, std::size_t index, std::uint64_t seed);

  int barrier(bool predicate, const char* name, const std::source_location& where);
  void collective(unsigned mask, void* mine, ApplyCollective apply, const char* name,
                  const std::source_location& where);
  void copy_async(const LateCopy& copy);
  void commit_copies() { ++threads_[current_]->next_group; }
  void wait_copies(int pending);
  int lane() const { return current_ % warp_size; }
  int index() const { return current_; }
  unsigned living(int warp) const;
  unsigned living() const { return living(current_ / warp_size); }
  void* shared() const { return shared_; }
  void* shared_at(unsigned address) const { return shared_region_ + address; }
  const char* describe();
  [[noreturn]] void error(const char* name, const std::source_location& where, const char* what);

 private:
  void prepare(const Launch& launch, std::size_t index);
  void resume(int thread);
  void suspend();
  void thread_main();
  void run_warp(int warp, Random& random);
  bool advance_collectives(int warp);
  void release_barrier();
  [[noreturn]] void report_stuck(const char* why);

  std::vector<std::unique_ptr<Thread>> threads_;
  context::fiber scheduler_;
  const Launch* launch_ = nullptr;
  int num_threads_ = 0;
  int current_ = -1;
  int barrier_count_ = 0;
  std::byte* shared_region_ = nullptr;
  void* shared_ = nullptr;
  void* scheduler_fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
  std::string description_;
};

Block block;

unsigned Block::living(int warp) const {
  unsigned mask = 0;
  for (int i = 0; i < warp_size && warp * warp_size + i < num_threads_; ++i)
    if (threads_[warp * warp_size + i]->state != State::ended) mask |= 1U << i;
  return mask;
}

void Block::prepare(const Launch& launch, std::size_t index) {
  launch_ = &launch;
  const dim3 grid = launch.config.gridDim;
  blockDim = launch.config.blockDim;
  gridDim = grid;
  blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
              static_cast<unsigned>(index / grid.x / grid.y)};
  num_threads_ = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  while (threads_.size() < static_cast<std::size_t>(num_threads_)) {
    auto thread = std::make_unique<Thread>();
    thread->fiber =
        context::fiber(std::allocator_arg, context::protected_fixedsize_stack(stack_bytes),
                       [this](context::fiber&& from) {
                         scheduler_ = std::move(from);
                         thread_main();
                         return std::move(scheduler_);
                       });
    threads_.push_back(std::move(thread));
  }
  for (int i = 0; i < num_threads_; ++i) {
    threads_[i]->state = State::runnable;
    threads_[i]->copies.clear();  // nobody waited for them
    threads_[i]->next_group = 0;
  }

  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t region = (max_shared_bytes + page - 1) / page * page;
  if (shared_region_ == nullptr) {
    void* mapped = mmap(nullptr, region + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, region, PROT_READ | PROT_WRITE) != 0) {
      std::perror("emulated CUDA: shared memory");
      std::abort();
    }
    shared_region_ = static_cast<std::byte*>(mapped);
  }
  // Contents of an earlier block must not be taken for this one's: all bits set is not a number.
  const std::size_t bytes = (launch.config.dynamicSmemBytes + 127) / 128 * 128;
  shared_ = shared_region_ + region - bytes;
  std::memset(shared_, 0xff, bytes);
}

void Block::thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  for (;;) {  // one fiber serves the thread with its number in every block to come
    launch_->body();
    threads_[current_]->state = State::ended;
    suspend();
  }
}

void Block::resume(int thread) {
  current_ = thread;
  const auto x = static_cast<unsigned>(thread);
  threadIdx = {x % blockDim.x, x / blockDim.x % blockDim.y, x / blockDim.x / blockDim.y};
  Thread& t = *threads_[thread];
#if defined(__SANITIZE_ADDRESS__)
  // The bottom of a fiber's stack is not known here; ASan needs it only to describe addresses.
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, nullptr, 0);
#endif
  t.fiber = std::move(t.fiber).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

void Block::suspend() {
#if defined(__SANITIZE_ADDRESS__)
  void** fake_stack = &threads_[current_]->fake_stack;
  __sanitizer_start_switch_fiber(fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
  scheduler_ = std::move(scheduler_).resume();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(*fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
}

void Block::copy_async(const LateCopy& copy) {
  Thread& t = *threads_[current_];
  std::memset(copy.to, 0xff, copy.bytes);
  t.copies.push_back(copy);
  t.copies.back().group = t.next_group;
}

void Block::wait_copies(int pending) {
  Thread& t = *threads_[current_];
  while (!t.copies.empty() &&
         t.copies.front().group + static_cast<std::uint64_t>(pending) < t.next_group) {
    const LateCopy& copy = t.copies.front();
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
    t.copies.pop_front();
  }
}

int Block::barrier(bool predicate, const char* name, const std::source_location& where) {
  Thread& t = *threads_[current_];
  t.predicate = predicate;
  t.name = name;
  t.where = where;
  t.state = State::at_barrier;
  suspend();
  return barrier_count_;
}

void Block::collective(unsigned mask, void* mine, ApplyCollective apply, const char* name,
                       const std::source_location& where) {
  if ((mask >> static_cast<unsigned>(lane()) & 1U) == 0)
    error(name, where, "its own lane is not in the mask");
  Thread& t = *threads_[current_];
  t.name = name;
  t.where = where;
  t.mask = mask;
  t.mine = mine;
  t.apply = apply;
  t.state = State::in_collective;
  suspend();
}

/// Completes each collective for which all living lanes have come. True if there was one.
bool Block::advance_collectives(int warp) {
  bool advanced = false;
  const int base = warp * warp_size;
  const unsigned alive = living(warp);
  unsigned seen = 0;
  for (int i = 0; i < warp_size; ++i) {
    if ((alive >> i & 1U) == 0 || (seen >> i & 1U) != 0) continue;
    const Thread& first = *threads_[base + i];
    if (first.state != State::in_collective) continue;
    const unsigned group = first.mask & alive;
    bool complete = true;
    std::array<void*, warp_size> lanes{};
    for (int j = 0; j < warp_size && complete; ++j) {
      if ((group >> j & 1U) == 0) continue;
      const Thread& other = *threads_[base + j];
      complete = other.state == State::in_collective && other.mask == first.mask &&
                 other.apply == first.apply && same_place(first, other);
      lanes[j] = other.mine;
    }
    if (!complete) continue;
    seen |= group;
    current_ = base + i;
    if (first.apply != nullptr) first.apply(lanes.data());
    for (int j = 0; j < warp_size; ++j)
      if ((group >> j & 1U) != 0) threads_[base + j]->state = State::runnable;
    advanced = true;
  }
  return advanced;
}

void Block::run_warp(int warp, Random& random) {
  const int base = warp * warp_size;
  const int lanes = std::min(warp_size, num_threads_ - base);
  do {
    const std::size_t choice = random.below(4);
    const int start = choice < 2 ? 0 : static_cast<int>(random.below(lanes));
    for (int n = 0; n < lanes; ++n) {
      const int i = (start + n) % lanes;
      const int lane = choice % 2 == 0 ? i : lanes - 1 - i;
      if (threads_[base + lane]->state == State::runnable) resume(base + lane);
    }
  } while (advance_collectives(warp));
}

void Block::release_barrier() {
  barrier_count_ = 0;
  for (int i = 0; i < num_threads_; ++i) {
    const Thread& t = *threads_[i];
    if (t.state == State::in_collective)
      report_stuck("lanes of its mask did not come to the same place");
    if (t.state == State::ended) report_stuck("threads of the block have ended");
    if (!same_place(*threads_[0], t)) report_stuck("threads of the block wait at another one");
    barrier_count_ += static_cast<int>(t.predicate);
  }
  for (int i = 0; i < num_threads_; ++i) threads_[i]->state = State::runnable;
}

void Block::run(const Launch& launch, std::size_t index, std::uint64_t seed) {
  prepare(launch, index);
  begin_block_of_products(seed + index);
  Random random(seed + index);
  const int warps = (num_threads_ + warp_size - 1) / warp_size;
  std::vector<int> order(warps);
  std::iota(order.begin(), order.end(), 0);
  for (;;) {
    for (int i = warps - 1; i > 0; --i)
      std::swap(order[i], order[random.below(static_cast<std::size_t>(i) + 1)]);
    for (const int warp : order) run_warp(warp, random);
    const bool all_ended =
        std::all_of(threads_.begin(), threads_.begin() + num_threads_,
                    [](const auto& thread) { return thread->state == State::ended; });
    if (all_ended) break;
    release_barrier();
  }
  if (const char* why = unfinished_products()) error("a kernel", launch.where, why);
  current_ = -1;
  launch_ = nullptr;
}

const char* Block::describe() {
  if (launch_ == nullptr) return "";
  char text[160];
  std::snprintf(text, sizeof text, " of grid (%u,%u,%u), block (%u,%u,%u), thread (%u,%u,%u)",
                gridDim.x, gridDim.y, gridDim.z, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
                threadIdx.y, threadIdx.z);
  description_ = std::string("kernel launched in ") + launch_->where.function_name() + " (" +
                 launch_->where.file_name() + ":" + std::to_string(launch_->where.line()) + ")" +
                 text;
  return description_.c_str();
}

void Block::error(const char* name, const std::source_location& where, const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s (%s:%u) %s\n  %s\n", name, where.file_name(),
               where.line(), what, describe());
  std::abort();
}

/// Says who waits where; threads that wait alike are counted together.
void Block::report_stuck(const char* why) {
  std::map<std::string, std::pair<int, int>> groups;  // what -> (how many, first thread)
  const Thread* waiting = nullptr;
  for (int i = 0; i < num_threads_; ++i) {
    const Thread& t = *threads_[i];
    std::string what = "ended";
    if (t.state != State::ended) {
      if (waiting == nullptr || t.state == State::in_collective) waiting = &t;
      what = std::string("wait in ") + t.name + " (" + t.where.file_name() + ":" +
             std::to_string(t.where.line()) + ")";
    }
    auto& [count, first] = groups[what];
    if (count++ == 0) first = i;
  }
  std::string text;
  for (const auto& [what, who] : groups)
    text += "\n  " + std::to_string(who.first) + " threads, the first is " +
            std::to_string(who.second) + ", " + what;
  error(waiting->name, waiting->where, ("can never end: " + std::string(why) + text).c_str());
}

std::map<const void*, std::size_t> shared_limits;
std::mutex shared_limits_mutex;

std::size_t shared_limit(const void* kernel) {
  const std::lock_guard lock(shared_limits_mutex);
  const auto found = shared_limits.find(kernel);
  return found == shared_limits.end() ? default_shared_bytes : found->second;
}

}  // namespace

int block_barrier(bool predicate, const char* name, const std::source_location& where) {
  return block.barrier(predicate, name, where);
}
void warp_collective(unsigned mask, void* mine, ApplyCollective apply, const char* name,
                     const std::source_location& where) {
  block.collective(mask, mine, apply, name, where);
}
void copy_async(void* to, const void* from, std::size_t bytes) {
  block.copy_async({to, from, bytes, 0});
}
void commit_copies() {
  block.commit_copies();
}
void wait_copies(int pending) {
  block.wait_copies(pending);
}
int lane_of_thread() {
  return block.lane();
}
int index_of_thread() {
  return block.index();
}
unsigned living_lanes() {
  return block.living();
}
void device_error(const char* name, const std::source_location& where, const char* what) {
  block.error(name, where, what);
}
void* dynamic_shared_memory() {
  return block.shared();
}
void* shared_pointer(unsigned address) {
  return block.shared_at(address);
}
const char* describe_running_thread() {
  return block.describe();
}

void check_wmma_pointer(const void* pointer, unsigned leading, std::size_t element_bytes,
                        const char* name, const std::source_location& where) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 32 != 0)
    block.error(name, where, "its pointer is not aligned to 32 bytes");
  if (leading * element_bytes % 16 != 0)
    block.error(name, where, "its rows do not lie a multiple of 16 bytes apart");
}

void run_grid(const Launch& launch) {
  const dim3 grid = launch.config.gridDim;
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  Random random(settings().seed);
  static std::uint64_t launches = 0;
  const std::uint64_t seed = settings().seed * 1000003 + ++launches * 7919;
  // Blocks in an order of their own: i -> (a i + b) mod blocks, a prime to the number of blocks.
  std::size_t a = Random(seed).below(blocks) | 1U;
  while (std::gcd(a, blocks) != 1) a += 2;
  const std::size_t b = Random(seed + 1).below(blocks);
  for (std::size_t i = 0; i < blocks; ++i) block.run(launch, (a * i + b) % blocks, seed);
}

cudaError_t launch(const void* kernel, Launch launch) {
  return call("cudaLaunchKernelEx", [&] {
    const cudaLaunchConfig_t& c = launch.config;
    const std::size_t threads = std::size_t{c.blockDim.x} * c.blockDim.y * c.blockDim.z;
    if (c.gridDim.x == 0 || c.gridDim.y == 0 || c.gridDim.z == 0 || threads == 0)
      return cudaErrorInvalidConfiguration;
    if (threads > 1024 || c.blockDim.z > 64 || c.gridDim.y > 65535 || c.gridDim.z > 65535 ||
        c.gridDim.x > 2147483647U)
      return cudaErrorInvalidConfiguration;
    if (c.dynamicSmemBytes > shared_limit(kernel)) return cudaErrorInvalidValue;
    for (unsigned i = 0; i < c.numAttrs; ++i)
      if (c.attrs[i].id == cudaLaunchAttributeClusterDimension ||
          c.attrs[i].id == cudaLaunchAttributeCooperative)
        return cudaErrorNotSupported;
    launch.config.attrs = nullptr;
    launch.config.numAttrs = 0;
    cudaStream_t stream = c.stream;
    return enqueue(stream, "kernel", [launch = std::move(launch)] { run_grid(launch); });
  });
}

}  // namespace emulated

extern "C" cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* kernel,
                                                      cudaFuncAttribute attribute, int value) {
  return emulated::call("cudaFuncSetAttribute", [&] {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || static_cast<std::size_t>(value) > emulated::max_shared_bytes)
      return cudaErrorInvalidValue;
    const std::lock_guard lock(emulated::shared_limits_mutex);
    emulated::shared_limits[kernel] = static_cast<std::size_t>(value);
    return cudaSuccess;
  });
}

extern "C" cudaError_t CUDARTAPI cudaFuncGetAttributes(cudaFuncAttributes* attributes,
                                                       const void* kernel) {
  return emulated::call("cudaFuncGetAttributes", [&] {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->binaryVersion = 90;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(emulated::shared_limit(kernel));
    return cudaSuccess;
  });
}

extern "C" cudaError_t CUDARTAPI cudaOccupancyMaxActiveBlocksPerMultiprocessor(
    int* blocks, const void*, int block_size, size_t shared_bytes) {
  return emulated::call("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&] {
    if (block_size < 1 || block_size > 1024) return cudaErrorInvalidValue;
    const std::size_t by_shared = emulated::max_shared_bytes / std::max<size_t>(shared_bytes, 1);
    *blocks = static_cast<int>(std::min<std::size_t>(2048 / block_size, by_shared));
    return cudaSuccess;
  });
}
