// What a job was given, from trees of files as Linux shows them, and how ranks share it.

#include "comm/allotment.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>

#include "tests/temporary_folder.hpp"

namespace atl::comm {
namespace {

constexpr double mib = 1024.0 * 1024.0;

class AllotmentTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.path() / name; }
  void write(const std::string& file, const std::string& text) {
    const std::filesystem::path whole = path("root" + file);
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text;
  }

  /// A process of a machine with 1000 MiB free that may run on `cores`.
  Surroundings process(std::vector<int> cores, std::map<std::string, std::string> variables = {}) {
    write("/proc/meminfo", "MemTotal: 2048000 kB\nMemFree: 1 kB\nMemAvailable: 1024000 kB\n");
    write("/proc/self/statm", "500 256 100 1 0 200 0\n");  // 256 pages are 1 MiB
    return {path("root"),
            [variables](const char* name) {
              const auto found = variables.find(name);
              return found == variables.end() ? nullptr : found->second.c_str();
            },
            std::move(cores)};
  }

  void version_2(const std::string& group, const std::string& mounted = "/") {
    write("/proc/self/cgroup", "0::" + group + "\n");
    write("/proc/self/mountinfo", "22 21 0:20 / /proc rw - proc proc rw\n30 23 0:26 " + mounted +
                                      " /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
  }
  void version_1(const std::string& group) {
    write("/proc/self/cgroup",
          "9:name=systemd:/\n4:memory:" + group + "\n2:cpu,cpuacct:" + group + "\n0::/somewhere\n");
    write("/proc/self/mountinfo",
          "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
          "32 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
          "33 23 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }

  /// The parts of `ranks` equal processes.
  std::vector<Share> shares(const Surroundings& one, int ranks) {
    return shares_of(std::vector<Allowance>(static_cast<std::size_t>(ranks), allowance_of(one)));
  }

 private:
  TemporaryFolder folder_;
};

std::vector<int> first_cores(int count) {
  std::vector<int> cores(static_cast<std::size_t>(count));
  std::iota(cores.begin(), cores.end(), 0);
  return cores;
}

TEST_F(AllotmentTest, RanksShareTheCoresOfTheirMasks) {
  for (const int ranks : {1, 2, 3, 8, 16}) {
    int threads = 0;
    for (const Share& share : shares(process(first_cores(8)), ranks)) {
      EXPECT_EQ(share.threads(), std::max(1, 8 / ranks));
      EXPECT_EQ(share.cores_by, "affinity");
      EXPECT_EQ(share.cores<1, ranks> 8);
      threads += share.threads();
    }
    EXPECT_LE(threads, std::max(8, ranks));
  }
}

TEST_F(AllotmentTest, BoundRanksHaveTheirOwnCores) {
  const auto both = shares_of({allowance_of(process({0, 1, 2})), allowance_of(process({3, 4}))});
  EXPECT_EQ(both[0].threads(), 3);
  EXPECT_EQ(both[1].threads(), 2);
}

TEST_F(AllotmentTest, OverlappingMasksGiveNoCoreTwice) {
  const auto three = shares_of({allowance_of(process({0, 1, 2, 3})),
                                allowance_of(process({2, 3, 4, 5})), allowance_of(process({6}))});
  EXPECT_EQ(three[0].threads(), 3);
  EXPECT_EQ(three[1].threads(), 3);
  EXPECT_EQ(three[2].threads(), 1);
}

TEST_F(AllotmentTest, AQuotaOfVersion2CountsWhereItIsSmallest) {
  version_2("/job/step/task");
  write("/sys/fs/cgroup/job/step/task/cpu.max", "max 100000\n");
  write("/sys/fs/cgroup/job/step/cpu.max", "650000 100000\n");
  write("/sys/fs/cgroup/job/cpu.max", "350000 100000\n");
  EXPECT_EQ(shares(process(first_cores(8)), 1)[0].threads(), 3);
  EXPECT_EQ(shares(process(first_cores(8)), 1)[0].cores_by, "cgroup");
  EXPECT_EQ(shares(process(first_cores(8)), 2)[0].threads(), 1);
  EXPECT_EQ(shares(process(first_cores(2)), 1)[0].threads(), 2);
  EXPECT_EQ(shares(process(first_cores(2)), 1)[0].cores_by, "affinity");
}

TEST_F(AllotmentTest, AQuotaOfVersion1CountsWhereItIsSmallest) {
  version_1("/slurm/job_7/step_0");
  const std::string cpu = "/sys/fs/cgroup/cpu,cpuacct";
  write(cpu + "/cpu.cfs_quota_us", "-1\n");
  write(cpu + "/slurm/job_7/cpu.cfs_quota_us", "200000\n");
  write(cpu + "/slurm/job_7/cpu.cfs_period_us", "50000\n");
  write(cpu + "/slurm/job_7/step_0/cpu.cfs_quota_us", "-1\n");
  write(cpu + "/slurm/job_7/step_0/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(shares(process(first_cores(64)), 1)[0].threads(), 4);
  EXPECT_EQ(shares(process(first_cores(64)), 2)[0].threads(), 2);
  EXPECT_LT(shares(process(first_cores(64)), 8)[0].cores, 1);
}

TEST_F(AllotmentTest, AGroupOfEachRankIsItsOwn) {
  version_2("/job/task_0");
  write("/sys/fs/cgroup/job/task_0/cpu.max", "200000 100000\n");
  write("/sys/fs/cgroup/job/task_1/cpu.max", "300000 100000\n");
  const Allowance first = allowance_of(process(first_cores(64)));
  version_2("/job/task_1");
  const auto both = shares_of({first, allowance_of(process(first_cores(64)))});
  EXPECT_EQ(both[0].threads(), 2);
  EXPECT_EQ(both[1].threads(), 3);
}

TEST_F(AllotmentTest, AContainerShowsItsPartOfTheHierarchy) {
  version_2("/docker/abc", "/docker/abc");
  write("/sys/fs/cgroup/cpu.max", "200000 100000\n");
  EXPECT_EQ(shares(process(first_cores(64)), 1)[0].threads(), 2);
  version_2("/../../elsewhere");
  EXPECT_EQ(shares(process(first_cores(64)), 1)[0].threads(), 2);
}

TEST_F(AllotmentTest, SlurmCountsWhereItSaysLess) {
  const auto threads = [&](std::map<std::string, std::string> variables, int ranks) {
    return shares(process(first_cores(16), std::move(variables)), ranks)[0].threads();
  };
  EXPECT_EQ(threads({{"SLURM_CPUS_ON_NODE", "4"}}, 1), 4);
  EXPECT_EQ(threads({{"SLURM_CPUS_ON_NODE", "4"}}, 2), 2);
  EXPECT_EQ(threads({{"SLURM_CPUS_ON_NODE", "64"}}, 2), 8);
  EXPECT_EQ(threads({{"SLURM_CPUS_PER_TASK", "3"}}, 1), 3);
  EXPECT_EQ(threads({{"SLURM_CPUS_PER_TASK", "3"}}, 2), 3);
  EXPECT_EQ(threads({{"SLURM_CPUS_PER_TASK", "12"}, {"SLURM_CPUS_ON_NODE", "12"}}, 4), 3);
  EXPECT_EQ(threads({{"SLURM_CPUS_ON_NODE", ""}, {"SLURM_CPUS_PER_TASK", "many"}}, 1), 16);
  EXPECT_EQ(threads({{"SLURM_CPUS_ON_NODE", "0"}, {"SLURM_CPUS_PER_TASK", "-2"}}, 1), 16);
}

TEST_F(AllotmentTest, MemoryIsWhatTheMachineHasFree) {
  const auto all = shares(process(first_cores(4)), 2);
  EXPECT_DOUBLE_EQ(all[0].memory_bytes, 500 * mib);
  EXPECT_EQ(all[0].memory_by, "MemAvailable");
}

TEST_F(AllotmentTest, AMemoryLimitOfVersion2CountsNoPageCache) {
  version_2("/job/step");
  write("/sys/fs/cgroup/job/step/memory.max", "max\n");
  write("/sys/fs/cgroup/job/memory.max", "419430400\n");      // 400 MiB
  write("/sys/fs/cgroup/job/memory.current", "314572800\n");  // 300 MiB, 200 of them cache
  write("/sys/fs/cgroup/job/memory.stat",
        "anon 100\nfile 300000000\ninactive_file 104857600\nactive_file 104857600\n");
  EXPECT_DOUBLE_EQ(shares(process(first_cores(4)), 1)[0].memory_bytes, 300 * mib);
  EXPECT_DOUBLE_EQ(shares(process(first_cores(4)), 3)[1].memory_bytes, 100 * mib);
  EXPECT_EQ(shares(process(first_cores(4)), 1)[0].memory_by, "cgroup");
  write("/sys/fs/cgroup/job/step/memory.high", "209715200\n");
  EXPECT_DOUBLE_EQ(shares(process(first_cores(4)), 1)[0].memory_bytes, 200 * mib);
  write("/sys/fs/cgroup/job/memory.current", "943718400\n");  // above the limit for a moment
  EXPECT_DOUBLE_EQ(shares(process(first_cores(4)), 1)[0].memory_bytes, 0);
}

TEST_F(AllotmentTest, AMemoryLimitOfVersion1CountsNoPageCache) {
  version_1("/job");
  const std::string memory = "/sys/fs/cgroup/memory";
  write(memory + "/memory.limit_in_bytes", "9223372036854771712\n");
  write(memory + "/job/memory.limit_in_bytes", "419430400\n");
  write(memory + "/job/memory.usage_in_bytes", "314572800\n");
  write(memory + "/job/memory.stat",
        "cache 5\ninactive_file 7\ntotal_inactive_file 104857600\ntotal_active_file 0\n");
  EXPECT_DOUBLE_EQ(shares(process(first_cores(4)), 1)[0].memory_bytes, 200 * mib);
}

TEST_F(AllotmentTest, SlurmsMemoryCountsLessWhatTheRanksHold) {
  const auto memory = [&](std::map<std::string, std::string> variables, int ranks) {
    return shares(process(first_cores(4), std::move(variables)), ranks)[0].memory_bytes / mib;
  };
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_NODE", "401"}}, 1), 400);
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_NODE", "402"}}, 2), 200);
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_NODE", "204801K"}}, 1), 199 + 1 / 1024.0);
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_CPU", "101"}, {"SLURM_CPUS_ON_NODE", "2"}}, 1), 201);
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_CPU", "101"}}, 1), 403);
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_GPU", "51"}, {"SLURM_GPUS_ON_NODE", "2"}}, 1), 101);
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_NODE", "0"}}, 1), 1000);  // all of the node
  EXPECT_DOUBLE_EQ(memory({{"SLURM_MEM_PER_NODE", "64G"}}, 1), 1000);
}

TEST_F(AllotmentTest, NothingReadableLimitsNothing) {
  const auto all = shares(process({}), 1);
  EXPECT_EQ(all[0].threads(), 1);
  EXPECT_DOUBLE_EQ(all[0].memory_bytes, 1000 * mib);
}

}  // namespace
}  // namespace atl::comm
