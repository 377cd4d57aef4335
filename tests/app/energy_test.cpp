// Counters of energy in a folder that stands for /sys.

#include "app/run/energy.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace atl {
namespace {

namespace fs = std::filesystem;

class Energy : public testing::Test {
 protected:
  void SetUp() override { fs::create_directories(root_); }
  void TearDown() override { fs::remove_all(root_); }
  void put(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }
  void package(int number, const std::string& microjoules) const {
    const std::string zone = "sys/class/powercap/intel-rapl:" + std::to_string(number);
    put(zone + "/name", "package-" + std::to_string(number));
    put(zone + "/energy_uj", microjoules);
    put(zone + "/max_energy_range_uj", "10000000");
  }
  std::string root() const { return root_.string() + "/"; }

 private:
  const fs::path root_ =
      fs::path(testing::TempDir()) / ("atoll-energy-" + std::to_string(getpid()));
};

TEST_F(Energy, IsTheSumOfPackagesWhichBeginAgain) {
  package(0, "1000000");
  package(1, "9000000");
  put("sys/class/powercap/intel-rapl:0:0/name", "core");  // a part of package 0
  put("sys/class/powercap/intel-rapl:0:0/energy_uj", "5");
  EnergyCounters counters(root());
  EXPECT_TRUE(counters.source().starts_with("RAPL (package-0, package-1)")) << counters.source();
  const double at_first = counters.joules();
  package(0, "3000000");
  package(1, "1000000");                                // from 9 J over the end at 10 J
  EXPECT_NEAR(counters.joules() - at_first, 4.0, 0.5);  // GPUs that are there count too
}

TEST_F(Energy, OfAWholeNodeComesFirst) {
  package(0, "1000000");
  put("sys/cray/pm_counters/energy", "500 J");
  EnergyCounters counters(root());
  EXPECT_EQ(counters.source(), "pm_counters (whole nodes)");
  put("sys/cray/pm_counters/energy", "512 J");
  EXPECT_DOUBLE_EQ(counters.joules(), 12.0);
  EXPECT_DOUBLE_EQ(counters.joules(), 12.0);
}

TEST_F(Energy, SaysWhyItCannotBeRead) {
  const EnergyCounters none(root());
  if (!none.source().empty()) GTEST_SKIP() << "this machine has " << none.source();
  EXPECT_NE(none.why_not().find("no counters"), std::string::npos);
  package(0, "not a number");
  const EnergyCounters hidden(root());
  EXPECT_TRUE(hidden.source().empty());
  EXPECT_NE(hidden.why_not().find("intel-rapl:0/energy_uj may not be read"), std::string::npos);
}

}  // namespace
}  // namespace atl
