// ranks: 4
// timeout: 120
//
// An expert whose weights go bad in memory while a run goes on: another rank that has it takes its
// rows, with the same results; where none has, the run ends and names it.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/model/import.hpp"
#include "app/run/run.hpp"
#include "perf/paced_over.hpp"
#include "tests/mpi_main.hpp"
#include "tests/shared_folder.hpp"

namespace atl {
namespace {

const std::string data = std::string(ATOLL_SOURCE_DIR) + "/tests/data/";

/// Its first expert's weights become NaN just before they are looked at for the second time.
class GoesBad : public perf::PacedOver {
 public:
  GoesBad(std::unique_ptr<compute::Backend> backend, const compute::BackendOptions& options)
      : PacedOver(std::move(backend), options, {1e30, 1e30}) {}

  void read_expert(int layer, int local_expert, std::span<std::byte> bytes) override {
    if (first_layer_ < 0) first_layer_ = layer;
    if (layer == first_layer_ && local_expert == 0 && ++looks_ == 2) {
      std::memset(bytes.data(), 0xff, bytes.size());
      real().write_expert(layer, local_expert, bytes);
    }
    real().read_expert(layer, local_expert, bytes);
  }

 private:
  int first_layer_ = -1, looks_ = 0;
};

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class BrokenExpert : public ::testing::Test {
 protected:
  BrokenExpert() : world_(comm::Communicator::world()), work_(world_) {
    options_.model = work_ / "model.h5";
    options_.input = work_ / "requests.jsonl";
    options_.max_tokens = 90;
    options_.threads = 1;
    options_.progress = ProgressStyle::none;
    options_.check_experts = 1;
    if (world_.rank() == 0) {
      import_hf(data + "sample-model", options_.model);
      std::ofstream file(options_.input);
      for (const char* prompt : {"In the beginning", "And God said", "Now the serpent"}) {
        file << nlohmann::json({{"id", prompt}, {"prompt", prompt}}).dump() << '\n';
      }
    }
    world_.barrier();
  }

  std::string results(const std::string& name, const Wrap& wrap) {
    options_.output = work_ / name;
    options_.report = work_ / (name + ".json");
    run_job(world_, options_, wrap);
    return world_.rank() == 0 ? text_of(options_.output) : "";
  }

  /// On rank 2 alone.
  std::unique_ptr<compute::Backend> spoiled(std::unique_ptr<compute::Backend> backend,
                                            const compute::BackendOptions& options) const {
    if (world_.rank() != 2) return backend;
    return std::make_unique<GoesBad>(std::move(backend), options);
  }
  Wrap spoil() const {
    return
        [this](std::unique_ptr<compute::Backend> backend, const compute::BackendOptions& options) {
          return spoiled(std::move(backend), options);
        };
  }

  comm::Communicator world_;
  SharedFolder work_;
  RunOptions options_;
};

TEST_F(BrokenExpert, AnotherRankThatHasItTakesItsRows) {
  options_.slots = 8;
  const std::string expected = results("expected", {});
  const std::string got = results("got", spoil());
  if (world_.rank() != 0) return;
  EXPECT_EQ(got, expected);
  const auto report = nlohmann::json::parse(text_of(options_.report));
  const auto& broken = report.at("balance").at("checks_of_experts").at("broken");
  ASSERT_EQ(broken.size(), 1U) << report.at("balance");
  EXPECT_EQ(broken[0].at("rank"), 2);
}

TEST_F(BrokenExpert, WhereNoneHasItTheRunEndsAndNamesIt) {
  options_.slots = 0;
  try {
    results("lost", spoil());
    FAIL() << "nothing was found";
  } catch (const comm::AgreedFailure& failure) {
    if (world_.rank() != 0) return;
    EXPECT_NE(std::string(failure.what()).find("on rank 2 "), std::string::npos) << failure.what();
    EXPECT_NE(std::string(failure.what()).find("no other rank"), std::string::npos);
  }
}

}  // namespace
}  // namespace atl
