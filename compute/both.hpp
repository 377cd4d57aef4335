#pragma once
// Marks functions that both the C++ compiler and nvcc compile, for host and device.

#ifdef __CUDACC__
#define ATOLL_BOTH __host__ __device__
#else
#define ATOLL_BOTH
#endif
