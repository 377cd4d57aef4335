#include "comm/allotment.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <sstream>

#include "comm/cgroup.hpp"
#include "comm/communicator.hpp"
#include "comm/openmp_binding.hpp"
#include "comm/topology.hpp"

namespace atl::comm {

namespace {

constexpr const char* node_group = "node";
constexpr const char* job_group = "job";

}  // namespace

std::vector<int> affinity_mask() {
  std::vector<int> cores;
  for (int size = CPU_SETSIZE; size <= 1 << 20; size *= 2) {  // too small a set is an error
    cpu_set_t* const set = CPU_ALLOC(static_cast<std::size_t>(size));
    const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(size));
    const bool done = sched_getaffinity(0, bytes, set) == 0;
    for (int core = 0; done && core < size; ++core) {
      if (CPU_ISSET_S(static_cast<std::size_t>(core), bytes, set)) cores.push_back(core);
    }
    CPU_FREE(set);
    if (done) break;
  }
  return cores;
}

namespace {

/// The cores of a list such as "0-3,8".
std::vector<int> cores_of(const std::string& list) {
  std::vector<int> cores;
  std::istringstream ranges(list);
  for (std::string range; std::getline(ranges, range, ',');) {
    const int first = std::atoi(range.c_str());
    const std::size_t dash = range.find('-');
    const int last = dash == std::string::npos ? first : std::atoi(range.c_str() + dash + 1);
    for (int core = first; core <= last; ++core) cores.push_back(core);
  }
  return cores;
}

/// The cores that the process which started this one may run on; empty where that is not shown.
std::vector<int> mask_of_parent() {
  std::ifstream status("/proc/" + std::to_string(getppid()) + "/status");
  constexpr std::string_view key = "Cpus_allowed_list:";
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key)) return cores_of(line.substr(key.size()));
  }
  return {};
}

/// A number above 0, as Slurm writes numbers of cores.
std::optional<double> positive(const char* text) {
  if (text == nullptr) return std::nullopt;
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || !(value > 0) || !std::isfinite(value)) return std::nullopt;
  return value;
}

/// Slurm's memory, in MiB unless a letter says otherwise; 0 is no limit.
std::optional<double> slurm_bytes(const char* text) {
  const auto value = positive(text);
  if (!value) return std::nullopt;
  const std::string_view letters("KMGT");
  const std::size_t power = letters.find(static_cast<char>(
      std::toupper(static_cast<unsigned char>(text[std::string_view(text).size() - 1]))));
  return std::ldexp(*value,
                    10 * (power == std::string_view::npos ? 2 : static_cast<int>(power) + 1));
}

void add_slurm(const Surroundings& from, Allowance& allowance) {
  const auto number = [&](const char* name) { return positive(from.variables(name)); };
  const auto on_node = number("SLURM_CPUS_ON_NODE");
  if (on_node) allowance.core_limits.push_back({job_group, *on_node, "SLURM_CPUS_ON_NODE"});
  if (const auto cores = number("SLURM_CPUS_PER_TASK"))
    allowance.core_limits.push_back({"", *cores, "SLURM_CPUS_PER_TASK"});
  const double resident = static_cast<double>(resident_bytes(from.root));
  const auto add = [&](const char* name, double times) {
    if (const auto bytes = slurm_bytes(from.variables(name)))
      allowance.memory_limits.push_back({job_group, *bytes * times, name, resident});
  };
  add("SLURM_MEM_PER_NODE", 1);
  add("SLURM_MEM_PER_CPU", on_node.value_or(static_cast<double>(allowance.cores.size())));
  if (const auto gpus = number("SLURM_GPUS_ON_NODE")) add("SLURM_MEM_PER_GPU", *gpus);
}

/// The part of a process whose mask gives it `from_mask` cores; `members` counts a group.
Share share_of(double from_mask, const Allowance& mine,
               const std::function<int(const std::string&)>& members) {
  Share share;
  share.cores = from_mask;
  share.cores_by = "affinity";
  const auto part = [&](const Limit& limit) {
    return std::max(0.0,
                    limit.amount / (limit.group.empty() ? 1 : members(limit.group)) - limit.used);
  };
  for (const Limit& limit : mine.core_limits) {
    if (part(limit) >= share.cores) continue;
    share.cores = part(limit);
    share.cores_by = limit.by;
  }
  for (const Limit& limit : mine.memory_limits) {
    if (!share.memory_by.empty() && part(limit) >= share.memory_bytes) continue;
    share.memory_bytes = part(limit);
    share.memory_by = limit.by;
  }
  return share;
}

// An allowance as text, for the other ranks: one item a line.
std::string text_of(const Allowance& allowance) {
  std::string text = fmt::format("cores {}\n", fmt::join(allowance.cores, ","));
  const auto add = [&text](char kind, const std::vector<Limit>& limits) {
    for (const Limit& l : limits)
      text += fmt::format("{}\t{}\t{}\t{}\t{}\n", kind, l.group, l.amount, l.used, l.by);
  };
  add('c', allowance.core_limits);
  add('m', allowance.memory_limits);
  return text;
}

Allowance allowance_from(const std::string& text) {
  Allowance allowance;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("cores ")) {
      allowance.cores = cores_of(line.substr(6));
      continue;
    }
    std::istringstream items(line);
    std::vector<std::string> item(5);
    for (std::string& one : item) std::getline(items, one, '\t');
    auto& limits = item[0] == "c" ? allowance.core_limits : allowance.memory_limits;
    limits.push_back({item[1], std::strtod(item[2].c_str(), nullptr), item[4],
                      std::strtod(item[3].c_str(), nullptr)});
  }
  return allowance;
}

void add_name(std::string& names, const std::string& name) {
  if (names.find(name) == std::string::npos) names += (names.empty() ? "" : ", ") + name;
}

}  // namespace

int Share::threads() const {
  constexpr double rounding = 1e-6;  // of sums of parts such as 1/3
  return std::max(1, static_cast<int>(cores + rounding));
}

Allowance allowance_of(const Surroundings& from) {
  Allowance allowance;
  allowance.cores = from.cores;
  for (const CgroupLimit& quota : cpu_quotas(from.root))
    allowance.core_limits.push_back({quota.group, quota.amount, "cgroup"});
  allowance.memory_limits.push_back(
      {node_group, static_cast<double>(available_bytes(from.root)), "MemAvailable"});
  for (const CgroupLimit& free : memory_headrooms(from.root))
    allowance.memory_limits.push_back({free.group, free.amount, "cgroup"});
  add_slurm(from, allowance);
  return allowance;
}

std::vector<Share> shares_of(const std::vector<Allowance>& ranks) {
  std::map<int, int> users;             // of each core
  std::map<std::string, int> group_of;  // members of each group
  for (const Allowance& rank : ranks) {
    for (const int core : rank.cores) ++users[core];
    std::map<std::string, int> groups;
    for (const Limit& limit : rank.core_limits) groups[limit.group] = 1;
    for (const Limit& limit : rank.memory_limits) groups[limit.group] = 1;
    for (const auto& [group, one] : groups) group_of[group] += one;
  }
  std::vector<Share> shares;
  for (const Allowance& rank : ranks) {
    double from_mask = 0;
    for (const int core : rank.cores) from_mask += 1.0 / users[core];
    if (rank.cores.empty()) from_mask = 1;  // the mask could not be read
    shares.push_back(
        share_of(from_mask, rank, [&](const std::string& group) { return group_of.at(group); }));
  }
  return shares;
}

Share share_before_mpi(int ranks) {
  Allowance mine = allowance_of({"", launcher::own_environment(), affinity_mask()});
  const std::vector<int> around = mask_of_parent();
  const bool bound =
      std::includes(around.begin(), around.end(), mine.cores.begin(), mine.cores.end());
  const auto of_job = static_cast<double>(bound ? around.size() : mine.cores.size());
  mine.core_limits.push_back({job_group, of_job, "affinity"});
  return share_of(static_cast<double>(std::max<std::size_t>(1, mine.cores.size())), mine,
                  [ranks](const std::string&) { return ranks; });
}

Allotment find_allotment(const Communicator& world, const Topology& topology) {
  const Allowance mine = allowance_of({"", launcher::own_environment(), affinity_mask()});
  const std::vector<std::string> texts = world.allgather_texts(text_of(mine));
  Allotment allotment;
  allotment.openmp_not_followed = openmp_bindings_not_followed();
  for (int node = 0; node < topology.num_nodes(); ++node) {
    std::vector<Allowance> ranks;
    std::optional<std::size_t> own;
    for (std::size_t rank = 0; rank < texts.size(); ++rank) {
      if (topology.node_of[rank] != node) continue;
      if (static_cast<int>(rank) == world.rank()) own = ranks.size();
      ranks.push_back(allowance_from(texts[rank]));
    }
    const std::vector<Share> shares = shares_of(ranks);
    if (own) allotment.mine = shares[*own];
    Allotment::Node& sum = allotment.nodes.emplace_back();
    for (const Share& share : shares) {
      sum.cores += share.cores;
      sum.memory_bytes += share.memory_bytes;
      add_name(sum.cores_by, share.cores_by);
      add_name(sum.memory_by, share.memory_by);
    }
  }
  return allotment;
}

}  // namespace atl::comm
