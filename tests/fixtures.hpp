#pragma once
// What several tests with GoogleTest need: a folder of one's own, and the message of an error.

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>

#include "compute/error.hpp"
#include "tests/temporary_folder.hpp"

namespace atl {

/// The message of the Error that `work` throws; a failure of the test if it throws none.
inline std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

/// Each test has an empty folder of its own.
class FolderTest : public testing::Test {
  const TemporaryFolder temporary_;

 protected:
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  const std::filesystem::path folder_ = temporary_.path();
};

}  // namespace atl
