#pragma once
// MPI's life in this process, and the variables that the libraries below it read when it starts.

#include <string>

namespace atl::comm {

/// MPI from construction to destruction. One thread calls MPI (MPI_THREAD_FUNNELED).
class Environment {
 public:
  Environment(int* argc, char*** argv);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  /// The MPI library's own name and version.
  static std::string library();
  /// Whether UCX may choose TCP, given the values of UCX_TLS and UCX_NET_DEVICES (nullptr: not
  /// set).
  static bool ucx_may_use_tcp(const char* transports, const char* devices);
};

}  // namespace atl::comm
