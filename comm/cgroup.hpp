#pragma once
// What Linux says about limits of this process's control groups, and about memory.

#include <cstdint>
#include <string>
#include <vector>

namespace atl::comm {

/// A limit of one group, which all processes in it and below share.
struct CgroupLimit {
  std::string group;  ///< names the group; the same in all processes of this machine
  double amount = 0;  ///< cores, or free bytes
};

// `root` is put before /proc and /sys. Groups are looked at from this process's own one to the top,
// in version 2 and version 1 of cgroups; what is not there limits nothing.

/// Processor time per time, in cores.
std::vector<CgroupLimit> cpu_quotas(const std::string& root);
/// Bytes that may still be taken: what is used does not count pages that the kernel would give up.
std::vector<CgroupLimit> memory_headrooms(const std::string& root);

/// Bytes of this machine that can be taken without swapping.
std::int64_t available_bytes(const std::string& root);
/// Bytes of memory that this process holds.
std::int64_t resident_bytes(const std::string& root);

}  // namespace atl::comm
