#include "app/run/check_facts.hpp"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/build_info.hpp"
#include "app/run/devices.hpp"
#include "app/run/system_files.hpp"
#include "comm/allotment.hpp"
#include "comm/environment.hpp"
#include "comm/launcher.hpp"
#include "comm/mpi_library.hpp"
#include "compute/cpu/probe.hpp"
#include "io/folder_probe.hpp"

namespace atl {

namespace {

namespace fs = std::filesystem;

constexpr double no_room =
    16e6;  // in /dev/shm: MPI libraries take some MB of it before anything else

std::string first_line(const fs::path& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

/// "0-3,8" as 0 1 2 3 8.
std::vector<int> numbers_of(const std::string& list) {
  std::vector<int> numbers;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    int first = 0;
    int last = 0;
    const int read = std::sscanf(part.c_str(), "%d-%d", &first, &last);
    if (read < 1) continue;
    for (int i = first; i <= (read == 2 ? last : first); ++i) numbers.push_back(i);
  }
  return numbers;
}

std::vector<int> numa_of(const std::vector<int>& cores, const std::string& root) {
  std::vector<int> nodes;
  for (const fs::path& entry : entries_of(root + "/sys/devices/system/node")) {
    int number = -1;
    if (std::sscanf(entry.filename().c_str(), "node%d", &number) != 1) continue;
    const std::vector<int> of_node = numbers_of(first_line(entry / "cpulist"));
    const bool any = std::any_of(cores.begin(), cores.end(), [&](int core) {
      return std::find(of_node.begin(), of_node.end(), core) != of_node.end();
    });
    if (any) nodes.push_back(number);
  }
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

/// Active ports of InfiniBand and RoCE, as UCX calls them: "mlx5_0:1".
std::vector<std::string> active_ports(const std::string& root) {
  std::vector<std::string> ports;
  for (const fs::path& card : entries_of(root + "/sys/class/infiniband")) {
    for (const fs::path& port : entries_of(card / "ports")) {
      if (first_line(port / "state").find("ACTIVE") == std::string::npos) continue;
      ports.push_back(card.filename().string() + ":" + port.filename().string());
    }
  }
  return ports;
}

/// Interfaces that are up, but for the loopback: Slingshot's (hsn0) are among them.
std::vector<std::string> interfaces(const std::string& root) {
  std::vector<std::string> up;
  for (const fs::path& entry : entries_of(root + "/sys/class/net")) {
    const std::string name = entry.filename();
    if (name != "lo" && first_line(entry / "operstate") == "up") up.push_back(name);
  }
  return up;
}

double limit_of(decltype(RLIMIT_NOFILE) which) {
  rlimit limit{};
  if (getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return -1;
  return static_cast<double>(limit.rlim_cur);
}

std::string gpu_of(const std::string& root) {
  const std::string hidden = why_gpus_are_hidden(comm::launcher::own_environment());
  if (!hidden.empty()) return "none (" + hidden + ")";
  if (const char* named = std::getenv("CUDA_VISIBLE_DEVICES")) return named;
  const std::size_t devices = entries_of(root + "/proc/driver/nvidia/gpus").size();
  return devices == 0 ? "none" : fmt::format("{} on the node", devices);
}

struct Room {
  double free = 0, size = 0;
};
Room room_in_shm() {
  struct statvfs room {};
  if (statvfs("/dev/shm", &room) != 0) return {};
  return {static_cast<double>(room.f_bavail) * static_cast<double>(room.f_frsize),
          static_cast<double>(room.f_blocks) * static_cast<double>(room.f_frsize)};
}

std::string host_name() {
  utsname names{};
  uname(&names);
  return static_cast<const char*>(names.nodename);
}

}  // namespace

RankFacts own_facts(const std::string& root) {
  RankFacts facts;
  facts.host = host_name();
  facts.cores = comm::affinity_mask();
  facts.numa = numa_of(facts.cores, root);
  facts.gpu = gpu_of(root);
  const std::vector<std::string> ports = active_ports(root);
  facts.infiniband = !ports.empty();
  const char* chosen = std::getenv("UCX_NET_DEVICES");
  facts.card = chosen != nullptr
                   ? std::string(chosen)
                   : fmt::format("{}", fmt::join(ports.empty() ? interfaces(root) : ports, ","));
  facts.mpi = comm::Environment::library();
  facts.mpi_loaded = comm::mpi_library::loaded_libraries();
  facts.hdf5 = io::hdf5_version();
  facts.one_dnn = compute::one_dnn_version();
  facts.build = fmt::format("{} ({}, {})", build_commit, build_compiler, build_type);
  utsname names{};
  uname(&names);
  facts.kernel = static_cast<const char*>(names.release);
  const Room room = room_in_shm();
  facts.shm_free = room.free;
  facts.shm_size = room.size;
  facts.memlock = limit_of(RLIMIT_MEMLOCK);
  facts.open_files = limit_of(RLIMIT_NOFILE);
  return facts;
}

void warn_before_mpi() {
  const Room room = room_in_shm();
  if (room.free >= no_room || comm::launcher::announced_local_rank() > 0) return;
  fmt::print(
      stderr,
      "check: {}: /dev/shm has little room ({:.0f} of {:.0f} MB free); if MPI does not start, "
      "that is why\n",
      host_name(), room.free / 1e6, room.size / 1e6);
}

}  // namespace atl
