// The row kernels against plain formulas, with widths and addresses that allow 16-byte accesses and
// such that do not.

#include "compute/cuda/kernels.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>

#include "tests/cuda/device_memory.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;

class CudaKernels : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { skip_without_device(); }

  DeviceBytes device(const reference::Vector& values) const {
    return DeviceBytes(encode(values, dtype_));
  }
  DeviceBytes space(int count) const {
    return DeviceBytes(static_cast<std::size_t>(count) * size_of(dtype_));
  }
  reference::Vector decoded(const DeviceBytes& bytes) const {
    const auto host = bytes.host();
    return decode(host.data(), host.size() / size_of(dtype_), dtype_);
  }
  static DeviceArray<float> floats(const reference::Vector& values) {
    return DeviceArray<float>(std::vector<float>(values.begin(), values.end()));
  }
  static reference::Vector values_of(const DeviceArray<float>& floats) {
    const auto host = floats.host();
    return {host.begin(), host.end()};
  }
  /// Float32 values with more digits than the 16-bit types have.
  static reference::Vector with_more_digits(reference::Vector values) {
    for (double& value : values) value = static_cast<float>(value) * 1.2345F;
    return values;
  }
  /// Half a unit in the last place of the type, and what float32 arithmetic adds.
  double tolerance(double value) const {
    const double relative = dtype_ == DType::bfloat16  ? 1.0 / 256
                            : dtype_ == DType::float16 ? 1.0 / 2048
                                                       : 0;
    return std::abs(value) * (relative + 4e-6) + 4e-6;
  }
  void expect_close(const reference::Vector& got, const reference::Vector& wanted) const {
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], wanted[i], tolerance(wanted[i])) << "element " << i;
    }
  }
  /// From nodes the second token's row is the sum already, and with one choice both tokens' are.
  void expect_merged(int width, int top_k, bool from_nodes) {
    const auto rows = random_.vector(6 * width, 0, 5);
    const auto x = with_more_digits(random_.vector(2 * width, 0, 1));
    const auto weight = random_.vector(width, 1, 0.2);
    std::vector<std::int32_t> slots = {3, 0, 5, 1, 4, 2};
    if (from_nodes) slots[4] = slots[5] = -1;
    const std::vector<float> weights = {0.5F, 0.375F, 0.125F, 0.625F, 0.25F, 0.125F};
    const auto on_device = floats(x);
    const auto packed = device(rows);
    const DeviceArray<std::int32_t> device_slots(slots);
    const DeviceArray<float> device_weights(weights);
    const auto norm = floats(weight);
    const auto normed = space(2 * width);
    cuda::MergeArgs args;
    args.x = on_device.get();
    args.rows = packed.get();
    args.slots = device_slots.get();
    args.weights = device_weights.get();
    args.from_nodes = from_nodes;
    args.num_tokens = 2;
    args.top_k = top_k;
    args.hidden = width;
    args.norm_weight = norm.get();
    args.eps = 1e-6F;
    args.normed = normed.get();
    cuda::merge(nullptr, dtype_, args);
    const auto got = values_of(on_device);
    for (int r = 0; r < 2; ++r) {
      const bool is_sum = from_nodes && (top_k == 1 || r == 1);
      for (int i = 0; i < width; ++i) {
        float sum = 0;
        for (int j = 0; j < (is_sum ? 1 : top_k); ++j) {
          const auto pair = static_cast<std::size_t>(r * top_k + j);
          const auto value =
              static_cast<float>(rows[static_cast<std::size_t>(slots[pair] * width + i)]);
          sum = is_sum ? value : std::fma(weights[pair], value, sum);
        }
        const auto at = static_cast<std::size_t>(r * width + i);
        const auto rounded = static_cast<float>(rounding_of(dtype_)(sum));
        ASSERT_EQ(got[at], static_cast<float>(x[at]) + rounded) << "row " << r << " column " << i;
      }
      expect_close(row_of(decoded(normed), r, width),
                   reference::rms_norm(row_of(got, r, width), weight, 1e-6F));
    }
  }
  static reference::Vector row_of(const reference::Vector& flat, int row, int width) {
    return {flat.begin() + row * width, flat.begin() + (row + 1) * width};
  }

  DType dtype_ = GetParam();
  Random random_{7, dtype_};
};

// 8200 and 20000 need more than the accesses that a thread keeps in registers.
constexpr int widths[] = {1, 7, 8, 48, 129, 192, 1000, 8200, 20000};

TEST_P(CudaKernels, RmsNormOfChosenRows) {
  for (const int width : widths) {
    const auto x = random_.vector(3 * width, 0.2, 2);
    const auto weight = random_.vector(width, 1, 0.2);
    const auto on_device = floats(x);
    const auto norm = floats(weight);
    const DeviceArray<std::int32_t> rows({2, 0});
    const auto all = space(3 * width);
    const auto chosen = space(2 * width);
    cuda::rms_norm(nullptr, dtype_, on_device.get(), nullptr, norm.get(), 1e-5F, all.get(), 3,
                   width);
    cuda::rms_norm(nullptr, dtype_, on_device.get(), rows.get(), norm.get(), 1e-5F, chosen.get(), 2,
                   width);
    const auto got = decoded(all);
    for (int r = 0; r < 3; ++r) {
      expect_close(row_of(got, r, width), reference::rms_norm(row_of(x, r, width), weight, 1e-5F));
    }
    EXPECT_EQ(row_of(decoded(chosen), 0, width), row_of(got, 2, width));
    EXPECT_EQ(row_of(decoded(chosen), 1, width), row_of(got, 0, width));
  }
}

TEST_P(CudaKernels, NormOfSquaresThatOverflowIsNaNInItsRowAlone) {
  auto x = random_.vector(3 * 40, 0, 2);
  x[40 + 7] = 1e25;
  const auto on_device = floats(x);
  const auto norm = floats(std::vector<double>(40, 1.0));
  const auto out = space(3 * 40);
  cuda::rms_norm(nullptr, dtype_, on_device.get(), nullptr, norm.get(), 1e-5F, out.get(), 3, 40);
  const auto got = decoded(out);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i / 40 == 1) << i;
}

TEST_P(CudaKernels, AddIsFloat32sBeforeItNormalises) {
  for (const int width : widths) {
    auto x = with_more_digits(random_.vector(2 * width, 0, 1));
    const auto y = random_.vector(2 * width, 0, 30);
    const auto weight = random_.vector(width, 1, 0.2);
    const auto sum = floats(x);
    const auto only_sum = floats(x);
    const auto addend = device(y);
    const auto norm = floats(weight);
    const auto out = space(2 * width);
    cuda::add_rms_norm(nullptr, dtype_, sum.get(), addend.get(), norm.get(), 1e-5F, out.get(), 2,
                       width);
    cuda::add_rms_norm(nullptr, dtype_, only_sum.get(), addend.get(), nullptr, 1e-5F, nullptr, 2,
                       width);
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>(x[i]) + static_cast<float>(y[i]);
    }
    EXPECT_EQ(values_of(sum), x);
    EXPECT_EQ(values_of(only_sum), x);
    const auto got = decoded(out);
    for (int r = 0; r < 2; ++r) {
      expect_close(row_of(got, r, width), reference::rms_norm(row_of(x, r, width), weight, 1e-5F));
    }
  }
}

TEST_P(CudaKernels, MergeAddsInTheGivenOrderAndRoundsTheSum) {
  for (const int width : {21, 48, 8200}) {
    for (const int top_k : {1, 3}) {
      for (const bool from_nodes : {false, true}) expect_merged(width, top_k, from_nodes);
    }
  }
}

TEST_P(CudaKernels, Activations) {
  for (const int count : {1, 7, 8, 33, 64, 129, 5000}) {
    const auto up = random_.vector(count, 0, 4);
    const auto gate = random_.vector(count, 0, 4);
    const auto up_floats = floats(up);
    const auto gate_floats = floats(gate);
    const auto factor = device(up);
    const auto out = space(count);
    cuda::gelu(nullptr, dtype_, up_floats.get(), out.get(), count);
    reference::Vector wanted;
    for (const double u : up) {
      wanted.push_back(
          reference::mlp({{{1}}, {}, {{1}}}, {u}, Activation::gelu_tanh, reference::exact)[0]);
    }
    expect_close(decoded(out), wanted);
    cuda::swiglu(nullptr, dtype_, gate_floats.get(), factor.get(), factor.get(), count);
    for (std::size_t i = 0; i < up.size(); ++i) {
      wanted[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
    expect_close(decoded(factor), wanted);
  }
}

TEST_P(CudaKernels, ActivationsOfLargeValuesStayFinite) {
  const reference::Vector extremes = {-1e4, -100, -90, -20, -0.0, 0, 20, 90, 100, 1e4};
  const auto in = floats(extremes);
  const auto ones = device(reference::Vector(10, 1.0));
  const auto out = space(10);
  reference::Vector wanted;
  for (const double x : extremes) wanted.push_back(std::max(x, 0.0));
  cuda::gelu(nullptr, dtype_, in.get(), out.get(), 10);
  expect_close(decoded(out), wanted);
  cuda::swiglu(nullptr, dtype_, in.get(), ones.get(), out.get(), 10);
  expect_close(decoded(out), wanted);
}

TEST_P(CudaKernels, EmbedWidensAndPackMovesRows) {
  for (const int width : {1, 3, 8, 48, 200, 2056}) {
    const auto table = random_.vector(5 * width, 0, 1);
    const auto on_device = device(table);
    const DeviceArray<std::int32_t> tokens({4, 0, 4});
    const DeviceArray<float> stream(static_cast<std::size_t>(3 * width));
    cuda::embed(nullptr, dtype_, on_device.get(), tokens.get(), stream.get(), 3, width);
    const auto x = values_of(stream);
    const auto rows = device(x);
    EXPECT_EQ(row_of(x, 0, width), row_of(table, 4, width));
    EXPECT_EQ(row_of(x, 1, width), row_of(table, 0, width));
    EXPECT_EQ(row_of(x, 2, width), row_of(table, 4, width));
    const std::vector<std::int32_t> slots = {5, 2, 0, 1, 4, 3};
    const DeviceArray<std::int32_t> device_slots(slots);
    const auto packed = space(6 * width);
    cuda::pack(nullptr, dtype_, rows.get(), device_slots.get(), packed.get(), 3, 2, width);
    const auto got = decoded(packed);
    for (int i = 0; i < 6; ++i) {
      EXPECT_EQ(row_of(got, slots[static_cast<std::size_t>(i)], width), row_of(x, i / 2, width));
    }
  }
}

TEST_P(CudaKernels, KvRowsGoToTheirPagesAndBack) {
  for (const int head_dim : {2, 10, 32}) {
    const int heads = 3;
    const int width = heads * head_dim;
    const int count = 70;
    const auto keys = random_.vector(count * width, 0, 1);
    const auto values = random_.vector(count * width, 0, 1);
    const std::vector<std::int32_t> pages = {3, 0, 2};
    const DeviceArray<std::int32_t> device_pages(pages);
    const auto paged_keys = space(4 * 64 * width);
    const auto paged_values = space(4 * 64 * width);
    const cuda::KvPages kv{paged_keys.get(), paged_values.get(), heads, head_dim, 64};
    const auto key_rows = device(keys);
    const auto value_rows = device(values);
    cuda::scatter_kv(nullptr, dtype_, kv, device_pages.get(), 60, count, key_rows.get(),
                     value_rows.get());
    const auto stored = decoded(paged_values);
    for (int t = 0; t < count; ++t) {
      const int page = pages[static_cast<std::size_t>((60 + t) / 64)];
      for (int c = 0; c < width; ++c) {
        const int at = ((page * heads + c / head_dim) * 64 + (60 + t) % 64) * head_dim;
        ASSERT_EQ(stored[static_cast<std::size_t>(at + c % head_dim)],
                  values[static_cast<std::size_t>(t * width + c)]);
      }
    }
    const auto key_copy = space(count * width);
    const auto value_copy = space(count * width);
    cuda::gather_kv(nullptr, dtype_, kv, device_pages.get(), 60, count, key_copy.get(),
                    value_copy.get());
    EXPECT_EQ(decoded(key_copy), keys);
    EXPECT_EQ(decoded(value_copy), values);
  }
}

TEST_P(CudaKernels, LogProbs) {
  if (dtype_ != DType::float32) return;  // logits are float32 whatever the model's type
  for (const int vocab : {1, 2, 17, 256, 1001, 5000}) {
    auto logits = random_.vector(2 * vocab, 50, 10);
    for (int i = 0; i < vocab; ++i) {  // the second row's largest are its last two
      double& x = logits[static_cast<std::size_t>(vocab + i)];
      x = i + 2 < vocab ? std::min(x, 90.0) : 90.0;
    }
    const auto on_device = floats(logits);
    const std::vector<std::int32_t> targets = {vocab / 2, vocab - 1};
    const DeviceArray<std::int32_t> device_targets(targets);
    const DeviceArray<ScoredToken> out(2);
    cuda::log_probs(nullptr, on_device.get(), device_targets.get(), out.get(), 2, vocab);
    const auto got = out.host();
    for (int r = 0; r < 2; ++r) {
      const auto row = row_of(logits, r, vocab);
      double sum = 0;
      for (const double value : row) sum += std::exp(value);
      const auto at = static_cast<std::size_t>(r);
      const auto target = row.begin() + targets[at];
      EXPECT_NEAR(got[at].logprob, *target - std::log(sum), 4e-5);
      EXPECT_EQ(got[at].greedy, std::ranges::max_element(row) == target ? 1 : 0) << vocab;
    }
  }
}

TEST_P(CudaKernels, LogProbsAreNaNWhereALogitIsNotFinite) {
  if (dtype_ != DType::float32) return;  // logits are float32 whatever the model's type
  for (const int vocab : {256, 1001}) {
    for (const double bad : {std::nan(""), -HUGE_VAL, HUGE_VAL}) {
      for (const int at : {0, 3, vocab - 1}) {
        auto logits = random_.vector(2 * vocab, 0, 10);
        logits[static_cast<std::size_t>(at)] = bad;
        const auto on_device = floats(logits);
        const DeviceArray<std::int32_t> targets(std::vector<std::int32_t>{vocab / 2, 0});
        const DeviceArray<ScoredToken> out(2);
        cuda::log_probs(nullptr, on_device.get(), targets.get(), out.get(), 2, vocab);
        EXPECT_TRUE(std::isnan(out.host()[0].logprob)) << bad << " at " << at;
        EXPECT_TRUE(std::isfinite(out.host()[1].logprob));
      }
    }
  }
}

/// One row whose q, k and v go through rope_and_store, at a position of another page.
TEST_P(CudaKernels, RopeNormalisesRotatesAndStores) {
  for (const int head_dim : {2, 10, 16, 32, 48, 64, 80, 128, 512}) {
    for (const QkNorm norm : {QkNorm::none, QkNorm::per_head, QkNorm::whole_row}) {
      ModelShape shape;
      shape.num_heads = 6;
      shape.num_kv_heads = norm == QkNorm::none ? 6 : 2;
      shape.head_dim = head_dim;
      shape.qk_norm = norm;
      const bool whole = norm == QkNorm::whole_row;
      const auto q_norm = random_.vector(whole ? shape.q_width() : head_dim, 1, 0.2);
      const auto k_norm = random_.vector(whole ? shape.kv_width() : head_dim, 1, 0.2);
      const int width = shape.q_width() + 2 * shape.kv_width();
      const auto rows = random_.vector(2 * width, 0, 1);
      const std::vector<std::int32_t> positions = {3, 130};
      std::vector<float> angles(static_cast<std::size_t>(131 * head_dim));
      for (int p = 0; p <= 130; ++p) {
        for (int i = 0; i < head_dim / 2; ++i) {
          const double angle = p * std::pow(shape.rope_theta, -2.0 * i / head_dim);
          const auto at = static_cast<std::size_t>(p * head_dim + i);
          angles[at] = static_cast<float>(std::cos(angle));
          angles[at + static_cast<std::size_t>(head_dim / 2)] = static_cast<float>(std::sin(angle));
        }
      }
      const auto qkv = device(rows);
      const auto keys = space(4 * 64 * shape.kv_width());
      const auto values = space(4 * 64 * shape.kv_width());
      const DeviceArray<std::int32_t> device_positions(positions);
      const DeviceArray<std::int32_t> sequences({1, 0});
      const DeviceArray<std::int32_t> pages({0, 3, 1, /* sequence 1: */ 2, 0, 0});
      const auto q_weights = floats(q_norm);
      const auto k_weights = floats(k_norm);
      const DeviceArray<float> device_angles(angles);
      cuda::RopeArgs args;
      args.kv = {keys.get(), values.get(), shape.num_kv_heads, head_dim, 64};
      args.map = {device_positions.get(), sequences.get(), pages.get(), 3};
      args.num_heads = shape.num_heads;
      args.num_rows = 2;
      args.norm = norm;
      args.q_norm = norm == QkNorm::none ? nullptr : q_weights.get();
      args.k_norm = norm == QkNorm::none ? nullptr : k_weights.get();
      args.eps = shape.rms_eps;
      args.angles = device_angles.get();
      args.dims = head_dim;
      args.qkv = qkv.get();
      cuda::rope_and_store(nullptr, dtype_, args);
      const auto rotated = decoded(qkv);
      const auto stored_keys = decoded(keys);
      const auto stored_values = decoded(values);
      for (int r = 0; r < 2; ++r) {
        const int position = positions[static_cast<std::size_t>(r)];
        const int page = r == 0 ? 2 : 1;
        const auto row = row_of(rows, r, width);
        const auto k_begin = row.begin() + shape.q_width();
        const auto v_begin = k_begin + shape.kv_width();
        auto q = row_of(rotated, r, width);
        q.resize(static_cast<std::size_t>(shape.q_width()));
        expect_close(q, reference::prepare_heads({row.begin(), k_begin}, q_norm, position, shape));
        reference::Vector k, v;
        for (int c = 0; c < shape.kv_width(); ++c) {
          const int head = page * shape.num_kv_heads + c / head_dim;
          const auto at =
              static_cast<std::size_t>((head * 64 + position % 64) * head_dim + c % head_dim);
          k.push_back(stored_keys[at]);
          v.push_back(stored_values[at]);
        }
        expect_close(k, reference::prepare_heads({k_begin, v_begin}, k_norm, position, shape));
        EXPECT_EQ(v, reference::Vector(v_begin, row.end()));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaKernels,
                         ::testing::Values(DType::bfloat16, DType::float16, DType::float32),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace atl::testing
