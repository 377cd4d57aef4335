// What libraries say of themselves, without any of them.

#include "comm/mpi_library.hpp"

#include <gtest/gtest.h>

#include "tests/environment_variables.hpp"

namespace atl::comm {
namespace {

using testing::variables;

TEST(MpiLibrary, IsNamedShortly) {
  EXPECT_EQ(mpi_library::short_version("Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4"),
            "Open MPI v4.1.4");
  EXPECT_EQ(mpi_library::short_version("MPICH Version:      4.0.2\nMPICH Release date: Thu\n"),
            "MPICH 4.0.2");
  EXPECT_EQ(mpi_library::short_version("MPI VERSION    : CRAY MPICH version 8.1.28.15 (ANL base "
                                       "3.4a2)\nMPI BUILD INFO : Wed Nov 15\n"),
            "CRAY MPICH version 8.1.28.15 (ANL base 3.4a2)");
  EXPECT_EQ(mpi_library::short_version("Intel(R) MPI Library 2021.11 for Linux* OS\n"),
            "Intel(R) MPI Library 2021.11 for Linux* OS");
}

TEST(MpiLibrary, MovesDeviceMemoryByItsOwnWords) {
  const auto moves = [](const char* said, mpi_library::DeviceClaims claims,
                        std::map<std::string, std::string> values) {
    return mpi_library::moves_device_memory(said, claims, variables(std::move(values)));
  };
  EXPECT_TRUE(moves("Open MPI v4.1.4", {true, true}, {}));
  EXPECT_FALSE(moves("Open MPI v4.1.4", {true, false}, {}));
  EXPECT_FALSE(moves("MPICH Version: 3.3", {false, false}, {}));
  EXPECT_FALSE(moves("MPICH Version: 4.1", {true, false}, {{"MPICH_GPU_SUPPORT_ENABLED", "1"}}));
  const char* cray = "MPI VERSION : CRAY MPICH version 8.1.28";
  EXPECT_TRUE(moves(cray, {false, false}, {{"MPICH_GPU_SUPPORT_ENABLED", "1"}}));
  EXPECT_FALSE(moves(cray, {true, true}, {}));
  EXPECT_FALSE(moves(cray, {true, true}, {{"MPICH_GPU_SUPPORT_ENABLED", "0"}}));
}

TEST(MpiLibrary, IsFoundAmongLoadedFiles) {
  const std::vector<std::string> both = {"",
                                         "/lib/x86_64-linux-gnu/libmpi.so.40",
                                         "/usr/lib/libmpi_mpifh.so.40",
                                         "/usr/lib/libhdf5_openmpi.so.103",
                                         "/opt/mpich/lib/libmpich.so.12",
                                         "/opt/mpich/lib/libmpich.so.12"};
  const std::vector<std::string> expected = {"libmpi.so.40", "libmpich.so.12"};
  EXPECT_EQ(mpi_library::among(both), expected);
  EXPECT_TRUE(mpi_library::among({"/lib/libc.so.6", "/lib/libmpifort.so.12"}).empty());
}

}  // namespace
}  // namespace atl::comm
