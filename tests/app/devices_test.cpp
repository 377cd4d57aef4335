// Which devices a rank sees.
#include "app/run/devices.hpp"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/environment_variables.hpp"

namespace atl {
namespace {

using testing::variables;

TEST(Devices, HiddenGpusAreSeenAsSuch) {
  const auto hidden = [](std::map<std::string, std::string> values) {
    return !why_gpus_are_hidden(variables(std::move(values))).empty();
  };
  EXPECT_FALSE(hidden({}));
  for (const char* none : {"", " ", "-1", "NoDevFiles", "none", "void", "-1,0", ",0"})
    EXPECT_TRUE(hidden({{"CUDA_VISIBLE_DEVICES", none}})) << none;
  for (const char* some : {"0", "0,1", " 2", "3,-1", "GPU-12ab", "MIG-34cd"})
    EXPECT_FALSE(hidden({{"CUDA_VISIBLE_DEVICES", some}})) << some;
  for (const char* none : {"", "void", "none"})
    EXPECT_TRUE(hidden({{"NVIDIA_VISIBLE_DEVICES", none}})) << none;
  EXPECT_FALSE(hidden({{"NVIDIA_VISIBLE_DEVICES", "all"}}));
  EXPECT_FALSE(hidden({{"NVIDIA_VISIBLE_DEVICES", "void"}, {"CUDA_VISIBLE_DEVICES", "0"}}));
}

}  // namespace
}  // namespace atl
