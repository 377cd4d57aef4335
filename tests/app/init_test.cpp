#include "app/model/init.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "app/model/tensors.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"
#include "tests/fixtures.hpp"

namespace atl {
namespace {

std::vector<float> random_floats(std::uint64_t seed, const char* name, std::int64_t first,
                                 std::size_t count, double deviation = 1.0) {
  std::vector<float> values(count);
  fill_random(seed, name, first, deviation, DType::float32,
              std::as_writable_bytes(std::span(values)));
  return values;
}

TEST(FillRandom, DependsOnSeedNameAndIndexAlone) {
  const auto all = random_floats(1, "a", 0, 100);
  const auto part = random_floats(1, "a", 40, 60);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 40));
  EXPECT_NE(random_floats(2, "a", 0, 100), all);
  EXPECT_NE(random_floats(1, "b", 0, 100), all);
}

TEST(FillRandom, IsNearlyNormal) {
  constexpr std::size_t count = 1 << 20;
  const auto values = random_floats(3, "weights", 0, count, 0.25);
  double sum = 0;
  double squares = 0;
  double lagged = 0;
  std::size_t within_one = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double x = values[i] / 0.25;
    sum += x;
    squares += x * x;
    if (i > 0) lagged += x * values[i - 1] / 0.25;
    within_one += std::abs(x) < 1 ? 1 : 0;
    ASSERT_LT(std::abs(x), 3.47);
  }
  // Five standard errors of each estimate.
  const double error = 5 / std::sqrt(double{count});
  EXPECT_LT(std::abs(sum / count), error);
  EXPECT_LT(std::abs(squares / count - 1), error * 1.2);
  EXPECT_LT(std::abs(lagged / count), error);
  // Four uniform values: with a = 1/sqrt(3), P(|x| < 1) = 2 (2a/3 - a^3/3 + a^4/8).
  EXPECT_NEAR(static_cast<double>(within_one) / count, 0.66928, 0.0023);
}

TEST(FillRandom, RoundsTheSameValuesToEachType) {
  const auto exact = random_floats(5, "x", 7, 1000);
  std::vector<std::uint16_t> brain(1000);
  std::vector<std::uint16_t> half(1000);
  fill_random(5, "x", 7, 1.0, DType::bfloat16, std::as_writable_bytes(std::span(brain)));
  fill_random(5, "x", 7, 1.0, DType::float16, std::as_writable_bytes(std::span(half)));
  for (std::size_t i = 0; i < exact.size(); ++i) {
    EXPECT_EQ(brain[i], compute::bfloat16_of(exact[i]));
    EXPECT_EQ(half[i], compute::float16_of(exact[i]));
  }
}

using InitModel = FolderTest;

TEST_F(InitModel, WritesEveryTensorOfThePreset) {
  const ModelConfig config = preset("moe-4l-tiny");
  init_model(config, 11, path("model.h5"), 0, 1, io::single_process);
  io::ModelFileReader reader(path("model.h5"));
  EXPECT_EQ(reader.config_json(), config.to_json());
  const std::vector<TensorInfo> tensors = tensors_of(config);
  const std::vector<io::DatasetInfo> datasets = reader.datasets();
  ASSERT_EQ(datasets.size(), tensors.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const io::DatasetInfo& info = datasets[i];
    EXPECT_EQ(info.path, tensors[i].path);
    EXPECT_EQ(info.shape, tensors[i].shape);
    EXPECT_EQ(info.dtype, DType::float16);
    double squares = 0;
    std::vector<std::uint16_t> values(static_cast<std::size_t>(info.slab_elements()));
    for (std::int64_t slab = 0; slab < info.num_slabs(); ++slab) {
      reader.read_slab(info, slab, std::as_writable_bytes(std::span(values)));
      for (std::uint16_t v : values) squares += std::pow(compute::float_of_float16(v), 2);
    }
    const double rms =
        std::sqrt(squares / static_cast<double>(info.num_slabs() * info.slab_elements()));
    const bool unit = info.shape.size() == 1 || info.path == "/model/embed_tokens/weight";
    const double expected = unit ? 1.0 : 1.0 / std::sqrt(static_cast<double>(info.shape.back()));
    EXPECT_NEAR(rms / expected, 1.0, 0.1) << info.path;
  }
}

TEST_F(InitModel, DependsOnTheSeed) {
  const ModelConfig config = preset("moe-4l-tiny");
  const auto identity = [&](std::uint64_t seed) {
    init_model(config, seed, path("model.h5"), 0, 1, io::single_process);
    return io::ModelFileReader(path("model.h5")).identity();
  };
  const std::uint64_t first = identity(1);
  EXPECT_NE(identity(2), first);
  EXPECT_EQ(identity(1), first);
}

TEST_F(InitModel, FailsWithTheReason) {
  EXPECT_THROW(init_model(preset("moe-4l-tiny"), 1, path("no/model.h5"), 0, 1, io::single_process),
               Error);
  // One of two ranks alone leaves half of the slabs out.
  EXPECT_THROW(init_model(preset("moe-4l-tiny"), 1, path("model.h5"), 0, 2, io::single_process),
               Error);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

}  // namespace
}  // namespace atl
