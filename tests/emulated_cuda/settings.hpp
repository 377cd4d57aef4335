#pragma once
// What a test says about the emulated device, by environment variables:
//
//   ATL_EMULATED_DEVICES     number of devices (1; 0: none)
//   ATL_EMULATED_CAPABILITY  compute capability (9.0)
//   ATL_EMULATED_MEMORY_MIB  memory of a device (4096)
//   ATL_EMULATED_SEED        chooses the order of work (1)
//   ATL_EMULATED_ORDER       adversarial (default): any order that streams and events allow;
//                            eager: everything runs when it is enqueued
//   ATL_EMULATED_PROTECT     1: host code that touches device memory crashes, with a message
//   ATL_EMULATED_BEFORE_MPI  1: a program that uses MPI and chooses its first device only after
//                            MPI_Init is ended, with a message
//   ATL_EMULATED_CUDA_AWARE  1: MPI says that it takes device memory; with ATL_EMULATED_PROTECT it
//                            crashes of it
//   ATL_EMULATED_WGMMA       other: warpgroups keep sums in other registers than PTX's manual says
//   ATL_EMULATED_FAIL        calls that fail, e.g. "cudaMalloc:3:2,kernel:17:700": the third
//                            cudaMalloc returns error 2, the 17th kernel that runs ends with error
//                            700. NAME:n+:code fails from the n-th call on. Work on streams counts
//                            under kernel, copy, fill and matmul; its errors stay for good.
//   ATL_EMULATED_FAIL_RANK   only the process with this rank (as MPI's launcher numbers it) fails

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulated {

struct Settings {
  int devices = 1;
  int major = 9;
  int minor = 0;
  std::size_t memory_bytes = std::size_t{4096} << 20U;
  std::uint64_t seed = 1;
  bool eager = false;
  bool protect = false;
  bool before_mpi = false;
  bool cuda_aware = false;
  bool other_wgmma = false;
};

/// Read once; throws nothing: a bad value ends the process with a message.
const Settings& settings();

/// Counts a call of `name`; the error code that ATL_EMULATED_FAIL gives to this one, or 0.
int injected_failure(const std::string& name);

/// Counter-based generator for every choice of order.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15U + 1) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31U);
  }
  /// In [0, n).
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(next() % n); }

 private:
  std::uint64_t state_;
};

}  // namespace emulated
