#include "comm/cgroup.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string_view>

namespace atl::comm {

namespace {

/// Version 1 writes about 2^63 for no limit.
constexpr double no_limit = 1LL << 60;

/// The number at the start of a file; nothing where there is no file, or "max", or -1.
std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (!(file >> value) || value < 0 || value >= no_limit) return std::nullopt;
  return value;
}

/// The sum of these entries of a file of "name value" lines.
double sum_in(const std::string& path, std::initializer_list<std::string_view> names) {
  std::ifstream file(path);
  double sum = 0;
  std::string name;
  double value = 0;
  while (file >> name >> value) {
    if (std::find(names.begin(), names.end(), name) != names.end()) sum += value;
  }
  return sum;
}

bool has_word(const std::string& list, std::string_view word) {
  std::istringstream words(list);
  for (std::string one; std::getline(words, one, ',');) {
    if (one == word) return true;
  }
  return false;
}

/// This process's group below the hierarchy's root, as "/a/b". `controller` is empty for version 2.
std::optional<std::string> group_path(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "4:cpu,cpuacct:/a/b", "0::/a/b"
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool here = controller.empty() ? controllers.empty() : has_word(controllers, controller);
    if (here) return line.substr(second + 1);
  }
  return std::nullopt;
}

struct Mount {
  std::string point;
  std::string group;  // what of the hierarchy is mounted there
};

std::optional<Mount> mount_of(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // "31 23 0:26 /group /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash));
    std::istringstream after(line.substr(dash + 3));
    std::string id, parent, device, type, source, options;
    Mount mount;
    before >> id >> parent >> device >> mount.group >> mount.point;
    after >> type >> source >> options;
    if (controller.empty() ? type == "cgroup2" : type == "cgroup" && has_word(options, controller))
      return mount;
  }
  return std::nullopt;
}

struct Folder {
  std::string path;
  std::string group;
};

/// The groups from this process's own to the top one that is mounted.
std::vector<Folder> folders_of(const std::string& root, const std::string& controller) {
  const auto path = group_path(root, controller);
  const auto mount = mount_of(root, controller);
  if (!path || !mount) return {};
  std::string below = *path;
  if (mount->group != "/" && below.starts_with(mount->group)) below.erase(0, mount->group.size());
  if (below.starts_with("/..")) below.clear();  // outside what this process's namespace shows
  std::vector<Folder> folders;
  for (;;) {
    while (below.ends_with('/')) below.pop_back();
    Folder folder{root + mount->point + below, ""};
    struct stat status {};
    if (stat(folder.path.c_str(), &status) == 0) {
      // The path may be another one in another container; the kernel's own number is not.
      folder.group = fmt::format("{}:{}", status.st_dev, status.st_ino);
      folders.push_back(folder);
    }
    if (below.empty()) return folders;
    below.erase(below.rfind('/'));
  }
}

/// Adds what is left of `limit` where `used` bytes are, `reclaimable` of them for the asking.
void add_headroom(std::vector<CgroupLimit>& all, const Folder& folder, std::optional<double> limit,
                  double used, double reclaimable) {
  if (limit) {
    all.push_back({folder.group, std::max(0.0, *limit - std::max(0.0, used - reclaimable))});
  }
}

}  // namespace

std::vector<CgroupLimit> cpu_quotas(const std::string& root) {
  std::vector<CgroupLimit> quotas;
  const auto add = [&quotas](const Folder& folder, std::optional<double> time,
                             std::optional<double> period) {
    if (time && period && *time > 0 && *period > 0)
      quotas.push_back({folder.group, *time / *period});
  };
  for (const Folder& folder : folders_of(root, "")) {
    std::ifstream file(folder.path + "/cpu.max");  // "150000 100000" or "max 100000"
    double time = 0;
    double period = 0;
    if (file >> time >> period) add(folder, time, period);
  }
  for (const Folder& folder : folders_of(root, "cpu")) {
    add(folder, number_in(folder.path + "/cpu.cfs_quota_us"),
        number_in(folder.path + "/cpu.cfs_period_us"));
  }
  return quotas;
}

std::vector<CgroupLimit> memory_headrooms(const std::string& root) {
  std::vector<CgroupLimit> all;
  for (const Folder& folder : folders_of(root, "")) {
    const double used = number_in(folder.path + "/memory.current").value_or(0);
    const double reclaimable =
        sum_in(folder.path + "/memory.stat", {"inactive_file", "active_file", "slab_reclaimable"});
    add_headroom(all, folder, number_in(folder.path + "/memory.max"), used, reclaimable);
    // Above this one the kernel slows the processes down until they give memory back.
    add_headroom(all, folder, number_in(folder.path + "/memory.high"), used, reclaimable);
  }
  for (const Folder& folder : folders_of(root, "memory")) {
    const double used = number_in(folder.path + "/memory.usage_in_bytes").value_or(0);
    const double reclaimable =
        sum_in(folder.path + "/memory.stat", {"total_inactive_file", "total_active_file"});
    add_headroom(all, folder, number_in(folder.path + "/memory.limit_in_bytes"), used, reclaimable);
  }
  return all;
}

std::int64_t available_bytes(const std::string& root) {
  std::ifstream meminfo(root + "/proc/meminfo");
  std::string key;
  std::string unit;
  std::int64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(meminfo, unit);
  }
  return sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

std::int64_t resident_bytes(const std::string& root) {
  std::ifstream statm(root + "/proc/self/statm");
  std::int64_t size = 0;
  std::int64_t resident = 0;
  statm >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

}  // namespace atl::comm
