// What `atoll check` finds wrong with machines that are described here.

#include <gtest/gtest.h>

#include <functional>

#include "app/run/check_judgement.hpp"
#include "app/run/check_text.hpp"

namespace atl {
namespace {

constexpr int nodes = 4;

/// Two ranks on each of four nodes, each with two cores of its own, and nothing wrong.
MachineFacts sound() {
  MachineFacts machine;
  machine.folder = "/scratch";
  machine.folder_locks = true;
  machine.folder_write_bytes_per_s = 1e9;
  for (int node = 0; node < nodes; ++node) {
    machine.nodes.push_back("h" + std::to_string(node + 1));
    for (int local = 0; local < 2; ++local) {
      RankFacts facts;
      facts.host = machine.nodes.back();
      facts.node = node;
      facts.cores = {2 * local, 2 * local + 1};
      facts.cores_given = 2;
      facts.cores_by = "affinity";
      facts.node_cores = 4;
      facts.memory_given = 8e9;
      facts.mpi = "MPICH 4.0.2";
      facts.mpi_loaded = {"libmpich.so.12"};
      facts.hdf5 = "1.10.8";
      facts.one_dnn = "2.6.3";
      facts.build = "abc";
      facts.shm_free = facts.shm_size = 1e9;
      facts.memlock = -1;
      facts.open_files = 1024;
      facts.flops_per_s = 1e11;
      facts.read_bytes_per_s = 1e10;
      facts.folder_bytes_per_s = 1e9;
      facts.sees_lock = true;
      machine.ranks.push_back(facts);
    }
    for (int other = 0; other < node; ++other) machine.pairs.push_back({other, node, 1e9, 3e-5});
  }
  machine.transports = {{"ialltoallv", true, 5e8}, {"pairwise", true, 5e8}};
  return machine;
}

/// The one problem of a machine that `spoil` altered; "" where there is not exactly one.
std::string only_problem(const std::function<void(MachineFacts&)>& spoil) {
  MachineFacts machine = sound();
  spoil(machine);
  const Verdict verdict = judge(machine);
  EXPECT_EQ(verdict.problems.size(), 1U) << check_text(machine, verdict);
  EXPECT_NE(check_text(machine, verdict).find("problem: "), std::string::npos);
  return verdict.problems.size() == 1 ? verdict.problems.front() : "";
}

#define EXPECT_SAYS(problem, beginning, words)              \
  do {                                                      \
    const std::string said = problem;                       \
    EXPECT_TRUE(said.starts_with(beginning)) << said;       \
    EXPECT_NE(said.find(words), std::string::npos) << said; \
  } while (false)

TEST(Check, FindsNothingWrongWithASoundMachine) {
  const MachineFacts machine = sound();
  const Verdict verdict = judge(machine);
  EXPECT_TRUE(verdict.problems.empty()) << check_text(machine, verdict);
  EXPECT_TRUE(verdict.notes.empty());
  EXPECT_NE(check_text(machine, verdict).find("no problem found"), std::string::npos);
  EXPECT_EQ(check_json(machine, verdict)["sound"], true);
  EXPECT_EQ(check_json(machine, verdict)["ranks"].size(), 8U);
}

TEST(Check, NamesNodesAndRanksThatAreSlow) {
  EXPECT_SAYS(
      only_problem([](MachineFacts& m) { m.ranks[4].flops_per_s = m.ranks[5].flops_per_s = 5e10; }),
      "h3: ", "computes slowly");
  EXPECT_SAYS(only_problem([](MachineFacts& m) { m.ranks[3].flops_per_s = 5e10; }),
              "rank 3 (h2): ", "computes slowly");
  EXPECT_SAYS(only_problem([](MachineFacts& m) { m.ranks[0].read_bytes_per_s = 2e9; }),
              "rank 0 (h1): ", "reads its memory slowly");
  EXPECT_SAYS(only_problem([](MachineFacts& m) { m.ranks[7].share = 0.3; }),
              "rank 7 (h4): ", "30 % of a core");
}

TEST(Check, NamesSlowLinks) {
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                for (comm::PairRate& pair : m.pairs) {
                  if (pair.a == 1 || pair.b == 1) pair.bytes_per_s = 1e8;
                }
              }),
              "h2: ", "its link carries 100 MB/s where others' carry 1e+03");
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                for (comm::PairRate& pair : m.pairs) {
                  if (pair.a == 1 && pair.b == 3) pair.bytes_per_s = 1e8;
                }
              }),
              "h2 and h4: ", "100 MB/s between them");
}

TEST(Check, DoesNotJudgeAPairWhileCoresAreBusy) {
  MachineFacts machine = sound();
  machine.pairs[2].bytes_per_s = 1e8;
  EXPECT_EQ(judge(machine).problems.size(), 1U);
  for (RankFacts& facts : machine.ranks) facts.share = 0.4;
  EXPECT_TRUE(judge(machine).problems.empty());
  EXPECT_EQ(judge(machine).notes.size(), 1U);
}

TEST(Check, NamesCoresThatAreSharedOrFew) {
  EXPECT_SAYS(only_problem([](MachineFacts& m) { m.ranks[2].cores = m.ranks[3].cores = {0}; }),
              "h2: ranks 2-3 ", "share core 0: 2 ranks on 1");
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                m.ranks[3].cores = {1, 2, 3};
              }),
              "h2: ranks 2-3 ", "overlap (0-3)");
  EXPECT_SAYS(
      only_problem([](MachineFacts& m) { m.ranks[2].node_cores = m.ranks[3].node_cores = 2; }),
      "h2: ", "has 2 cores (affinity) where others have 4");
}

TEST(Check, NamesLimits) {
  EXPECT_SAYS(
      only_problem([](MachineFacts& m) { m.ranks[6].shm_free = m.ranks[7].shm_free = 1e6; }),
      "h4: ", "/dev/shm has 1 of 1000 MB free");
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                for (int r : {0, 1}) m.ranks[static_cast<std::size_t>(r)].open_files = 64;
              }),
              "h1: ", "ulimit -n allows 64");
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                for (RankFacts& facts : m.ranks) facts.infiniband = true;
                m.ranks[0].memlock = m.ranks[1].memlock = 65536;
              }),
              "h1: ", "ulimit -l");
  MachineFacts without_cards = sound();
  for (RankFacts& facts : without_cards.ranks) facts.memlock = 65536;
  EXPECT_TRUE(judge(without_cards).problems.empty());
}

TEST(Check, NamesMixedLibraries) {
  EXPECT_SAYS(
      only_problem([](MachineFacts& m) { m.ranks[4].mpi = m.ranks[5].mpi = "Open MPI v4.1.4"; }),
      "h3: ", "the MPI library is Open MPI v4.1.4, elsewhere MPICH 4.0.2");
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                m.ranks[1].mpi_loaded = {"libmpi.so.40", "libmpich.so.12"};
              }),
              "rank 1 (h1): ", "two MPI libraries in one process (libmpi.so.40, libmpich.so.12)");
}

TEST(Check, NamesFoldersAndDatagrams) {
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                for (int r : {4, 5}) {
                  m.ranks[static_cast<std::size_t>(r)].folder_problem = "there is no /scratch";
                }
              }),
              "h3: there is no /scratch", "one file system");
  EXPECT_SAYS(only_problem([](MachineFacts& m) { m.folder_problem = "cannot write to /scratch"; }),
              "rank 0 (h1): cannot write", "/scratch");
  EXPECT_SAYS(only_problem([](MachineFacts& m) {
                m.ranks[2].unheard = {0, 2, 3};
                for (int r : {0, 4, 6}) m.ranks[static_cast<std::size_t>(r)].unheard = {1};
              }),
              "h2: no datagrams (UDP) between it and other nodes", "not named");
  EXPECT_SAYS(only_problem([](MachineFacts& m) { m.ranks[2].unheard = {3}; }),
              "h2 and h4: no datagrams", "UDP");
  MachineFacts without_locks = sound();
  without_locks.folder_locks = false;
  EXPECT_TRUE(judge(without_locks).problems.empty());
  EXPECT_EQ(judge(without_locks).notes.size(), 1U);
}

TEST(Check, OfTwoNodesNamesTheOneThatHearsNothing) {
  MachineFacts machine = sound();
  machine.nodes.resize(2);
  machine.ranks.resize(4);
  machine.pairs = {{0, 1, 1e9, 3e-5}};
  machine.ranks[0].unheard = {1};
  machine.ranks[2].unheard = {0};
  EXPECT_EQ(judge(machine).problems.size(), 1U);
}

}  // namespace
}  // namespace atl
