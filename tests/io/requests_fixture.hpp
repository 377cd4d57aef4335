#pragma once
// Reads lines of requests as a job of a small model would.

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "io/requests.hpp"
#include "tests/fixtures.hpp"

namespace atl::io {

class RequestLines : public FolderTest {
 protected:
  void SetUp() override {
    limits_.vocab = 256;
    limits_.max_positions = 100;
    limits_.default_max_tokens = 10;
  }

  std::vector<Request> read(const std::string& text) const {
    const std::string file = path("requests.jsonl");
    std::ofstream(file, std::ios::binary) << text;
    return read_requests(file, limits_);
  }

  /// The reason for which the only line is refused.
  std::string refusal(const std::string& line) const {
    const std::vector<Request> requests = read(line + "\n");
    EXPECT_EQ(requests.size(), 1U);
    EXPECT_FALSE(requests.at(0).error.empty()) << line;
    return requests.at(0).error;
  }

  RequestLimits limits_;
};

}  // namespace atl::io
