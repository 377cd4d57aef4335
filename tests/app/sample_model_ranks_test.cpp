// ranks: 3 16
// timeout: 120
//
// The sample model, imported and scored by the whole program, against the float64 oracle.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "app/model/import.hpp"
#include "app/model/model_config.hpp"
#include "app/run/run.hpp"
#include "compute/convert.hpp"
#include "io/model_file.hpp"
#include "tests/mpi_main.hpp"
#include "tests/oracle_weights.hpp"
#include "tests/reference.hpp"
#include "tests/shared_folder.hpp"

namespace atl {
namespace {

const std::string data = std::string(ATOLL_SOURCE_DIR) + "/tests/data/";

void append_slab(io::ModelFileReader& file, const std::string& path, std::int64_t slab,
                 reference::Vector& values) {
  const auto info = file.dataset(path);
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(info.slab_elements()));
  file.read_slab(info, slab, std::as_writable_bytes(std::span(bits)));
  for (const std::uint16_t half : bits) values.push_back(compute::float_of_bfloat16(half));
}

reference::Model read_model(const std::string& path) {
  io::ModelFileReader file(path);
  reference::Model model;
  model.shape = ModelConfig::from_json(file.config_json()).shape;
  compute::for_each_weight(model.shape, compute::whole_model(model.shape),
                           [&](const compute::WeightInfo& info, int expert, int) {
                             reference::Vector values;
                             for (const compute::Dataset& dataset : info.datasets) {
                               append_slab(file, dataset.path, std::max(expert, 0), values);
                             }
                             testing::set_weight(model, info, expert, std::move(values));
                           });
  return model;
}

/// The results' log-probabilities of prompt tokens 1.. by request id.
std::map<std::string, std::vector<double>> read_results(const std::string& path) {
  std::map<std::string, std::vector<double>> results;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto result = nlohmann::json::parse(line);
    const auto& logprobs = result.at("prompt_logprobs");
    EXPECT_TRUE(logprobs.at(0).is_null());
    auto& values = results[result.at("id").get<std::string>()];
    for (std::size_t i = 1; i < logprobs.size(); ++i) values.push_back(logprobs[i].get<double>());
  }
  return results;
}

struct Comparison {
  double mean_difference = 0;
  double largest_difference = 0;
  double perplexity_ratio = 0;
};

Comparison compare(const std::map<std::string, std::vector<double>>& got,
                   const std::map<std::string, std::vector<double>>& expected) {
  Comparison c;
  double sum = 0;
  double count = 0;
  for (const auto& [id, values] : expected) {
    EXPECT_EQ(got.at(id).size(), values.size()) << id;
    for (std::size_t i = 0; i < values.size(); ++i, ++count) {
      const double difference = got.at(id)[i] - values[i];
      sum += difference;
      c.mean_difference += std::abs(difference);
      c.largest_difference = std::max(c.largest_difference, std::abs(difference));
    }
  }
  c.mean_difference /= count;
  c.perplexity_ratio = std::exp(-sum / count);
  return c;
}

TEST(SampleModel, ScoresAgreeWithTheOracle) {
  const comm::Communicator world = comm::Communicator::world();
  const SharedFolder work(world);
  if (world.rank() == 0) import_hf(data + "sample-model", work / "model.h5");
  world.barrier();

  std::map<std::string, std::vector<double>> expected;
  if (world.rank() == 0) {
    const reference::Model model = read_model(work / "model.h5");
    std::ifstream file(data + "heldout.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto request = nlohmann::json::parse(line);
      std::vector<std::int32_t> tokens;
      for (const char byte : request.at("prompt").get<std::string>()) {
        tokens.push_back(static_cast<unsigned char>(byte));
      }
      const auto log_probs = reference::log_probs(model, tokens);
      auto& values = expected[request.at("id").get<std::string>()];
      for (std::size_t t = 0; t + 1 < tokens.size(); ++t) {
        values.push_back(log_probs[t][static_cast<std::size_t>(tokens[t + 1])]);
      }
    }
    EXPECT_GT(expected.size(), 3U);
  }
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    RunOptions options;
    options.model = work / "model.h5";
    options.input = data + "heldout.jsonl";
    options.output = work / "results.jsonl";
    options.mode = Mode::score;
    options.dtype = dtype;
    options.chunks = 3;
    options.threads = 1;
    options.progress = ProgressStyle::none;
    run_job(world, options);
    if (world.rank() != 0) continue;
    const Comparison c = compare(read_results(options.output), expected);
    std::printf("%s: mean |difference| %.2g, largest %.2g, perplexity ratio %.5f\n",
                name_of(dtype).data(), c.mean_difference, c.largest_difference, c.perplexity_ratio);
    if (dtype == DType::bfloat16) {
      EXPECT_LT(c.mean_difference, 0.02);
      EXPECT_NEAR(c.perplexity_ratio, 1.0, 0.005);
    } else {
      EXPECT_LT(c.largest_difference, 1e-4);
    }
  }
}

}  // namespace
}  // namespace atl
