// What is read from the environment before MPI starts.

#include "comm/environment.hpp"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "comm/communicator.hpp"
#include "comm/launcher.hpp"
#include "tests/environment_variables.hpp"

namespace atl::comm {
namespace {

using testing::variables;

TEST(Environment, KnowsWhereUcxMayUseTcp) {
  const auto may = Environment::ucx_may_use_tcp;
  EXPECT_TRUE(may(nullptr, nullptr));
  EXPECT_TRUE(may("all", nullptr));
  EXPECT_TRUE(may("tcp,self,sm", "eth0"));
  EXPECT_TRUE(may("self,sm,tcp", nullptr));
  EXPECT_TRUE(may("^ib", nullptr));
  EXPECT_TRUE(may(nullptr, "mlx5_0:1,eth0"));
  EXPECT_TRUE(may(nullptr, "all"));
  EXPECT_FALSE(may("self,sm", nullptr));
  EXPECT_FALSE(may("rc,cuda_copy,tcpx", nullptr));
  EXPECT_FALSE(may("^tcp", nullptr));
  EXPECT_FALSE(may("^ib,tcp", nullptr));
  EXPECT_FALSE(may(nullptr, "mlx5_0:1"));
  EXPECT_FALSE(may("all", "mlx5_0:1,mlx5_1:1"));
}

TEST(Launcher, OnlyLaunchersOfMpiCount) {
  const auto alone = [](std::map<std::string, std::string> values) {
    return launcher::alone(variables(std::move(values)));
  };
  EXPECT_TRUE(alone({}));
  EXPECT_TRUE(alone({{"SLURM_JOB_ID", "7"},
                     {"SLURM_NTASKS", "3"},
                     {"SLURM_PROCID", "0"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_NODELIST", "node1"}}));
  EXPECT_TRUE(alone({{"OMPI_COMM_WORLD_SIZE", "1"}, {"PMIX_RANK", "0"}}));
  EXPECT_TRUE(alone({{"PMI_RANK", "0"}, {"PMI_SIZE", "1"}}));
  EXPECT_FALSE(alone({{"OMPI_COMM_WORLD_SIZE", "4"}}));
  EXPECT_FALSE(alone({{"PMI_SIZE", "2"}, {"PMI_RANK", "1"}}));
  EXPECT_FALSE(alone({{"PMIX_RANK", "0"}}));  // which does not say how many there are
  EXPECT_FALSE(alone({{"PMI_RANK", "0"}}));
  EXPECT_TRUE(alone({{"PMIX_RANK", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}}));  // Slurm says it
  EXPECT_TRUE(alone({{"PMI_RANK", "0"}, {"SLURM_STEP_ID", "0"}, {"SLURM_NTASKS", "1"}}));
  EXPECT_FALSE(alone({{"PMIX_RANK", "0"}, {"SLURM_STEP_NUM_TASKS", "4"}}));
  EXPECT_FALSE(alone({{"PMIX_RANK", "2"}, {"SLURM_STEP_NUM_TASKS", "1"}}));
  EXPECT_FALSE(alone({{"OMPI_COMM_WORLD_SIZE", "1"}, {"PMI_SIZE", "2"}}));
}

TEST(Launcher, RanksThatMpiDidNotJoinAreSeen) {
  const auto why = [](int size, std::map<std::string, std::string> values,
                      const std::string& daemon = "") {
    return launcher::why_split(size, variables(std::move(values)), 100, daemon);
  };
  using Values = std::map<std::string, std::string>;
  const Values step = {{"SLURM_JOB_ID", "7"},
                       {"SLURM_STEP_ID", "0"},
                       {"SLURM_STEP_NUM_TASKS", "3"},
                       {"SLURM_NTASKS", "3"},
                       {"SLURM_PROCID", "0"}};
  const auto with = [](Values values, const Values& more) {
    for (const auto& [name, value] : more) values[name] = value;
    return values;
  };
  EXPECT_NE(why(1, step).find("srun started 3 tasks"), std::string::npos);
  EXPECT_NE(why(1, with(step, {{"SLURM_TASK_PID", "100"}})), "");
  EXPECT_NE(why(1, with(step, {{"SLURM_TASK_PID", "99"}})), "");  // below a script
  EXPECT_NE(why(1, step, "slurmstepd: [7.0]"), "");
  EXPECT_NE(why(1, with(step, {{"PMIX_RANK", "1"}})), "");
  EXPECT_NE(why(1, {{"SLURM_PROCID", "2"}}), "");
  EXPECT_NE(why(1, {{"SLURM_STEPID", "0"}, {"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "0"}}), "");
  for (const char* name : {"PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"})
    EXPECT_NE(why(1, {{name, "3"}}).find(name), std::string::npos);

  EXPECT_EQ(why(1, {}), "");
  EXPECT_EQ(why(1, {{"SLURM_STEPID", "0"}, {"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}}), "");
  EXPECT_EQ(why(3, step), "");
  EXPECT_EQ(why(3, {{"PMI_SIZE", "3"}}), "");
  EXPECT_EQ(why(1, with(step, {{"SLURM_STEP_NUM_TASKS", "1"}})), "");
  // mpirun inside a step, or below another launcher.
  EXPECT_EQ(why(1, with(step, {{"OMPI_COMM_WORLD_SIZE", "1"}})), "");
  EXPECT_EQ(why(2, {{"OMPI_COMM_WORLD_SIZE", "2"}, {"PMI_SIZE", "4"}}), "");
  // One process of a batch script, of salloc, of an interactive step, of srun --pty bash.
  EXPECT_EQ(why(1, {{"SLURM_JOB_ID", "7"}, {"SLURM_NTASKS", "3"}, {"SLURM_PROCID", "0"}}), "");
  EXPECT_EQ(why(1, step, "slurmstepd: [7.batch]"), "");
  EXPECT_EQ(why(1, with(step, {{"SLURM_STEP_ID", "4294967291"}})), "");
  EXPECT_EQ(why(1, with(step, {{"SLURM_STEP_ID", "4294967290"}})), "");
  const Values terminal = with(step, {{"SLURM_PTY_PORT", "4000"}});
  EXPECT_EQ(why(1, with(terminal, {{"SLURM_TASK_PID", "99"}})), "");
  EXPECT_NE(why(1, with(terminal, {{"SLURM_TASK_PID", "100"}})), "");  // srun -n 3 --pty atoll
}

TEST(Launcher, RanksOfThisNodeAreAnnounced) {
  const auto ranks = [](std::map<std::string, std::string> values) {
    return launcher::announced_local_ranks(variables(std::move(values)));
  };
  EXPECT_EQ(ranks({}), 1);
  EXPECT_EQ(ranks({{"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}, {"SLURM_NTASKS_PER_NODE", "2"}}), 4);
  EXPECT_EQ(ranks({{"SLURM_STEP_TASKS_PER_NODE", "8(x2),3"}}), 8);
  EXPECT_EQ(ranks({{"SLURM_NTASKS_PER_NODE", "many"}}), 1);
}

TEST(Launcher, ThisProcesssNumberOnItsNodeIsKnownOrNot) {
  const auto rank = [](std::map<std::string, std::string> values) {
    return launcher::known_local_rank(variables(std::move(values)));
  };
  EXPECT_EQ(rank({}), 0);  // it is alone
  EXPECT_EQ(rank({{"OMPI_COMM_WORLD_SIZE", "1"}}), 0);
  EXPECT_EQ(rank({{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "3"}}), 3);
  EXPECT_EQ(rank({{"PMI_SIZE", "4"}, {"PMI_RANK", "2"}, {"MPI_LOCALRANKID", "1"}}), 1);
  EXPECT_EQ(rank({{"PMIX_RANK", "2"}, {"SLURM_LOCALID", "2"}}), 2);
  EXPECT_EQ(rank({{"PMI_SIZE", "4"}, {"PMI_RANK", "2"}}), std::nullopt);
}

}  // namespace
}  // namespace atl::comm
