#include "app/version.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "app/build_info.hpp"
#include "comm/environment.hpp"
#include "comm/mpi_library.hpp"
#include "comm/transports/kind.hpp"
#include "compute/cpu/isa.hpp"
#include "compute/cpu/probe.hpp"
#include "compute/error.hpp"
#include "io/folder_probe.hpp"

namespace atl {

namespace {

/// The instruction sets that this machine's CPU has, of those that there are kernels for.
std::string isa_text() {
  try {
    return compute::name_of(compute::expected_cpu_isa());
  } catch (const Error&) {
    return "none (no AVX2)";
  }
}

}  // namespace

std::string version_text() {
  std::vector<std::string_view> transports;
  for (const comm::TransportInfo& transport : comm::transports)
    transports.push_back(transport.name);
  return fmt::format(
      "atoll {}\n"
      "commit:     {}\n"
      "built:      {}, {}\n"
      "MPI:        {} ({})\n"
      "HDF5:       {}\n"
      "oneDNN:     {}\n"
      "CUDA:       {}\n"
      "transports: {}\n"
      "this CPU:   {}",
      build_version, build_commit, build_compiler, build_type, comm::Environment::library(),
      fmt::join(comm::mpi_library::loaded_libraries(), ", "), io::hdf5_version(),
      compute::one_dnn_version(), build_cuda, fmt::join(transports, " "), isa_text());
}

}  // namespace atl
