#include "comm/mpi_library.hpp"

#include <link.h>
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstdlib>

#include "comm/communicator.hpp"

// Of Open MPI and of MPICH from 3.4 on, each declares it elsewhere or not at all. Weak: absent
// where the library that runs has none.
extern "C" __attribute__((weak)) int MPIX_Query_cuda_support();

namespace atl::comm::mpi_library {

namespace {

std::string library_text() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  check(MPI_Get_library_version(text.data(), &length), "MPI_Get_library_version");
  return {text.data(), static_cast<std::size_t>(length)};
}

std::vector<std::string> loaded_files() {
  std::vector<std::string> files;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        static_cast<std::vector<std::string>*>(data)->emplace_back(info->dlpi_name);
        return 0;
      },
      &files);
  return files;
}

}  // namespace

std::string short_version(std::string_view said) {
  std::string_view line = said.substr(0, said.find_first_of(",\n"));
  if (const auto label = line.find(" : "); label != std::string_view::npos) {
    line.remove_prefix(label + 3);  // Cray's: "MPI VERSION    : CRAY MPICH version ..."
  }
  std::string name;
  while (!line.empty()) {
    const std::string_view word = line.substr(0, line.find_first_of(" \t"));
    line.remove_prefix(std::min(word.size() + 1, line.size()));
    if (word.empty() || word == "Version:") continue;
    name += (name.empty() ? "" : " ") + std::string(word);
  }
  return name;
}

std::string version() {
  return short_version(library_text());
}

void prepare(bool ranks_share_cores) {
  if (!ranks_share_cores) return;
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", /*overwrite=*/0);
  setenv("MPIR_CVAR_POLLS_BEFORE_YIELD", "1", /*overwrite=*/0);  // MPICH; 1000 by default
}

bool moves_device_memory(std::string_view said, const DeviceClaims& claims,
                         const launcher::Variables& variables) {
  if (said.find("CRAY MPICH") != std::string_view::npos) {
    const char* enabled = variables("MPICH_GPU_SUPPORT_ENABLED");
    return enabled != nullptr && std::string_view(enabled) == "1";
  }
  return claims.queried && claims.says_so;
}

bool claims_device_memory() {
  DeviceClaims claims;
  claims.queried = MPIX_Query_cuda_support != nullptr;
  claims.says_so = claims.queried && MPIX_Query_cuda_support() == 1;
  return moves_device_memory(library_text(), claims, launcher::own_environment());
}

bool over_ucx() {
  bool any_layer = false;
  bool ucx_layer = false;
  bool ucx = false;
  for (const std::string& name : loaded_files()) {
    any_layer |= name.find("mca_pml_") != std::string::npos;
    ucx_layer |= name.find("mca_pml_ucx") != std::string::npos;
    ucx |= name.find("libucp") != std::string::npos;
  }
  return any_layer ? ucx_layer : ucx;
}

std::vector<std::string> among(const std::vector<std::string>& loaded) {
  constexpr std::array names = {"libmpi.so", "libmpich.so", "libmpi_cray.so", "libmpi_gnu",
                                "libmpi_intel.so"};
  std::vector<std::string> found;
  for (const std::string& path : loaded) {
    const std::string file = path.substr(path.rfind('/') + 1);
    const bool is_mpi = std::any_of(names.begin(), names.end(),
                                    [&](const char* name) { return file.starts_with(name); });
    if (is_mpi && std::find(found.begin(), found.end(), file) == found.end()) found.push_back(file);
  }
  return found;
}

std::vector<std::string> loaded_libraries() {
  return among(loaded_files());
}

}  // namespace atl::comm::mpi_library
