// What is read from the environment before MPI starts.

#include <gtest/gtest.h>

#include "comm/communicator.hpp"

namespace atl::comm {
namespace {

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

}  // namespace
}  // namespace atl::comm
