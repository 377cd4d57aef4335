#pragma once
// Memory of the emulated device, and pinned host memory. Device memory ends right before a page
// that nobody may touch, so that a kernel that runs past the end of an allocation crashes with a
// message that names it (to within the 256 bytes to which allocations are aligned; exactly under
// ASan).

#include <cstddef>

namespace emulated {

/// While one lives, device memory may be touched although ATL_EMULATED_PROTECT is set.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

/// What `bytes` bytes from `pointer` are: part of one allocation, of none, or beyond one's end.
enum class Place { host, device, outside };
Place place_of(const void* pointer, std::size_t bytes);

}  // namespace emulated
