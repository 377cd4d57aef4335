// Devices, their properties and errors of the runtime API.

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/emulated_cuda/queue.hpp"
#include "tests/emulated_cuda/settings.hpp"

// Not there in programs without MPI.
extern "C" __attribute__((weak)) int MPI_Initialized(int* flag);

using emulated::call;
using emulated::settings;

namespace {

constexpr int multiprocessors = 4;    // few, so that small tests fill them
constexpr int cache_bytes = 1 << 16;  // small: programs write twice as much to empty it

struct ErrorText {
  cudaError_t code;
  const char* name;
  const char* text;
};

#define ATOLL_ERROR(CODE, TEXT) \
  ErrorText {                   \
    CODE, #CODE, TEXT           \
  }
const ErrorText error_texts[] = {
    ATOLL_ERROR(cudaSuccess, "no error"),
    ATOLL_ERROR(cudaErrorInvalidValue, "invalid argument"),
    ATOLL_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    ATOLL_ERROR(cudaErrorInitializationError, "initialization error"),
    ATOLL_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ATOLL_ERROR(cudaErrorInsufficientDriver,
                "CUDA driver version is insufficient for CUDA runtime version"),
    ATOLL_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ATOLL_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    ATOLL_ERROR(cudaErrorNoKernelImageForDevice,
                "no kernel image is available for execution on the device"),
    ATOLL_ERROR(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    ATOLL_ERROR(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ATOLL_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ATOLL_ERROR(cudaErrorNotReady, "device not ready"),
    ATOLL_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ATOLL_ERROR(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ATOLL_ERROR(cudaErrorMisalignedAddress, "misaligned address"),
    ATOLL_ERROR(cudaErrorLaunchFailure, "unspecified launch failure"),
    ATOLL_ERROR(cudaErrorNotPermitted, "operation not permitted"),
    ATOLL_ERROR(cudaErrorNotSupported, "operation not supported"),
    ATOLL_ERROR(cudaErrorStreamCaptureUnsupported,
                "operation not permitted when stream is capturing"),
    ATOLL_ERROR(cudaErrorStreamCaptureInvalidated,
                "operation failed due to a previous error during capture"),
    ATOLL_ERROR(cudaErrorStreamCaptureMerge,
                "operation would result in a merge of separate capture sequences"),
    ATOLL_ERROR(cudaErrorStreamCaptureUnmatched,
                "capture was not ended in the same stream as it began"),
    ATOLL_ERROR(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ATOLL_ERROR(cudaErrorStreamCaptureIsolation,
                "dependency created on uncaptured work in another stream"),
    ATOLL_ERROR(cudaErrorStreamCaptureImplicit,
                "operation would make the legacy stream depend on a capturing blocking stream"),
    ATOLL_ERROR(cudaErrorCapturedEvent,
                "operation not permitted on an event last recorded in a capturing stream"),
};
#undef ATOLL_ERROR

const ErrorText* text_of(cudaError_t error) {
  for (const ErrorText& known : error_texts)
    if (known.code == error) return &known;
  return nullptr;
}

bool exists(int device) {
  return device >= 0 && device < settings().devices;
}

/// MPI libraries take resources of the device that is there when they start.
void require_before_mpi(int device) {
  static int first = -1;
  int started = 0;
  if (settings().before_mpi && first != device && MPI_Initialized != nullptr) {
    MPI_Initialized(&started);
  }
  if (started != 0) {
    std::fprintf(stderr, "emulated CUDA: device %d is chosen after MPI_Init\n", device);
    std::abort();
  }
  first = device;
}

int attribute_of(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      return settings().major;
    case cudaDevAttrComputeCapabilityMinor:
      return settings().minor;
    case cudaDevAttrMultiProcessorCount:
      return multiprocessors;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxThreadsPerBlock:
      return 1024;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return 2048;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return 233472;
    case cudaDevAttrL2CacheSize:
      return cache_bytes;
    case cudaDevAttrAsyncEngineCount:
      return 3;
    case cudaDevAttrConcurrentKernels:
      return 1;
    case cudaDevAttrUnifiedAddressing:
      return 1;
    case cudaDevAttrMemoryPoolsSupported:
      return 1;
    case cudaDevAttrClockRate:
      return 1980000;
    case cudaDevAttrMemoryClockRate:
      return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 5120;
    case cudaDevAttrPciBusId:
      return 1 + emulated::current_device();
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
      return 65535;
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    default:
      return 0;
  }
}

void fill_properties(cudaDeviceProp& p, int device) {
  std::snprintf(p.name, sizeof p.name, "Emulated device %d.%d", settings().major, settings().minor);
  std::memset(p.uuid.bytes, device + 1, sizeof p.uuid.bytes);
  p.totalGlobalMem = settings().memory_bytes;
  p.sharedMemPerBlock = 49152;
  p.sharedMemPerBlockOptin = 232448;
  p.sharedMemPerMultiprocessor = 233472;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiProcessor = 2048;
  p.maxBlocksPerMultiProcessor = 32;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 2147483647;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.totalConstMem = 65536;
  p.major = settings().major;
  p.minor = settings().minor;
  p.multiProcessorCount = multiprocessors;
  p.canMapHostMemory = p.concurrentKernels = p.unifiedAddressing = 1;
  p.asyncEngineCount = 3;
  p.memoryBusWidth = 5120;
  p.l2CacheSize = cache_bytes;
  p.streamPrioritiesSupported = p.memoryPoolsSupported = 1;
  p.pciBusID = device + 1;
}

}  // namespace

extern "C" {

/// Asked before the MPI library's own, which is in a shared library.
int MPIX_Query_cuda_support() {
  if (settings().cuda_aware) return 1;
  using Query = int (*)();
  const auto of_library = reinterpret_cast<Query>(dlsym(RTLD_NEXT, "MPIX_Query_cuda_support"));
  return of_library == nullptr ? 0 : of_library();
}

cudaError_t CUDARTAPI cudaGetDeviceCount(int* count) {
  *count = 0;
  return call("cudaGetDeviceCount", [&] {
    *count = settings().devices;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaSetDevice(int device) {
  return call("cudaSetDevice", [&] {
    if (!exists(device)) return cudaErrorInvalidDevice;
    require_before_mpi(device);
    emulated::current_device() = device;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  return call("cudaGetDevice", [&] {
    *device = emulated::current_device();
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", [&] {
    if (!exists(device)) return cudaErrorInvalidDevice;
    *properties = {};
    fill_properties(*properties, device);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", [&] {
    if (!exists(device)) return cudaErrorInvalidDevice;
    *value = attribute_of(attribute);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  return call("cudaDeviceGetPCIBusId", [&] {
    if (!exists(device)) return cudaErrorInvalidDevice;
    std::snprintf(text, static_cast<std::size_t>(bytes), "0000:%02x:00.0", device + 1);
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaDeviceCanAccessPeer(int* can, int, int) {
  return call("cudaDeviceCanAccessPeer", [&] {
    *can = 0;
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaSetDeviceFlags(unsigned) {
  return call("cudaSetDeviceFlags", [] { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaDeviceSetLimit(cudaLimit, size_t) {
  return call("cudaDeviceSetLimit", [] { return cudaSuccess; });
}

cudaError_t CUDARTAPI cudaDeviceReset() {
  return call("cudaDeviceReset", [] {
    emulated::run_all();
    return cudaSuccess;
  });
}

cudaError_t CUDARTAPI cudaDriverGetVersion(int* version) {
  *version = settings().devices == 0 ? 0 : CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaGetLastError() {
  return emulated::last_error(true);
}
cudaError_t CUDARTAPI cudaPeekAtLastError() {
  return emulated::last_error(false);
}

const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
  const ErrorText* known = text_of(error);
  return known == nullptr ? "unrecognized error code" : known->name;
}

const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
  const ErrorText* known = text_of(error);
  return known == nullptr ? "unrecognized error code" : known->text;
}

cudaError_t CUDARTAPI cudaProfilerStart() {
  return cudaSuccess;
}
cudaError_t CUDARTAPI cudaProfilerStop() {
  return cudaSuccess;
}

}  // extern "C"
