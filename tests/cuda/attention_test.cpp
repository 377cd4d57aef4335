// timeout: 240
// once more with: ATOLL_ATTENTION=mma
// Attention over paged keys and values: against the plain formula, and the same row in different
// company bit for bit.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "compute/cuda/kernels.hpp"
#include "compute/cuda/plan/attention_plan.hpp"
#include "compute/cuda/wgmma.hpp"
#include "tests/cuda/device_memory.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;
using compute::Segment;

/// Some rows of one sequence: positions [first, first + count).
struct Rows {
  int sequence = 0;
  int first = 0;
  int count = 0;
};

/// Enough multiprocessors that every tile is split along its keys, or so few that none is.
constexpr int split_all = 1 << 20;
constexpr int split_none = 0;

ModelShape shape_of(int num_heads, int num_kv_heads, int head_dim) {
  ModelShape shape;
  shape.num_heads = num_heads;
  shape.num_kv_heads = num_kv_heads;
  shape.head_dim = head_dim;
  shape.max_positions = 4096;
  return shape;
}

/// Sequences with random q, k and v at every position (q only from `first_query` on).
struct Sequences {
  Sequences(const ModelShape& model_shape, DType type, const std::vector<int>& lengths,
            int first_query, Random& random)
      : shape(model_shape), dtype(type), query_offset(first_query) {
    for (const int length : lengths) {
      q.push_back(rows(std::max(0, length - first_query), shape.q_width(), random));
      k.push_back(rows(length, shape.kv_width(), random));
      v.push_back(rows(length, shape.num_kv_heads * shape.values_dim(), random));
    }
  }
  static reference::Matrix rows(int count, int width, Random& random) {
    reference::Matrix values;
    for (int i = 0; i < count; ++i) values.push_back(random.vector(width, 0, 1));
    return values;
  }

  const reference::Vector& query(int sequence, int position) const {
    return q[static_cast<std::size_t>(sequence)][static_cast<std::size_t>(position - query_offset)];
  }

  /// Latents: values are the first part of the keys.
  void take_values_from_keys() {
    for (std::size_t s = 0; s < k.size(); ++s) {
      for (std::size_t t = 0; t < k[s].size(); ++t) {
        v[s][t].assign(k[s][t].begin(), k[s][t].begin() + shape.value_dim);
      }
    }
    values_of_keys = true;
  }

  /// The plain formula for one row: softmax(q k / sqrt(head_dim)) v, in double, over the keys of
  /// the window; a sink joins the sum.
  reference::Vector expected(int sequence, int position) const {
    const auto s = static_cast<std::size_t>(sequence);
    const auto d = static_cast<std::size_t>(shape.head_dim);
    const auto width = static_cast<std::size_t>(shape.values_dim());
    const auto group = static_cast<std::size_t>(shape.num_heads / shape.num_kv_heads);
    const reference::Vector& row = query(sequence, position);
    reference::Vector out(row.size() / d * width, 0.0);
    const int low = window > 0 ? std::max(0, position + 1 - window) : 0;
    for (std::size_t head = 0; head < row.size() / d; ++head) {
      const std::size_t kv = head / group;
      reference::Vector scores;
      for (int t = low; t <= position; ++t) {
        const reference::Vector& key = k[s][static_cast<std::size_t>(t)];
        double score = 0;
        for (std::size_t i = 0; i < d; ++i) score += row[head * d + i] * key[kv * d + i];
        scores.push_back(score / std::sqrt(static_cast<double>(d)));
      }
      if (!sinks.empty()) scores.push_back(sinks[head]);
      reference::softmax(scores);
      for (int t = low; t <= position; ++t) {
        const reference::Vector& value = v[s][static_cast<std::size_t>(t)];
        const double weight = scores[static_cast<std::size_t>(t - low)];
        for (std::size_t i = 0; i < width; ++i) {
          out[head * width + i] += weight * value[kv * width + i];
        }
      }
    }
    return out;
  }

  ModelShape shape;
  DType dtype;
  int query_offset;
  int window = 0;
  std::vector<float> sinks;
  bool values_of_keys = false;
  std::vector<reference::Matrix> q, k, v;
};

/// The sequences' keys and values on the device, in pages handed out in an order of choice. What
/// belongs to no position holds NaN.
class Cache {
 public:
  Cache(const Sequences& data, int page_tokens, bool reversed)
      : data_(data), page_tokens_(page_tokens) {
    int num_pages = 0;
    for (const auto& keys : data.k) {
      tables_.emplace_back();
      for (std::size_t t = 0; t < keys.size(); t += static_cast<std::size_t>(page_tokens)) {
        tables_.back().push_back(num_pages++);
      }
    }
    for (auto& table : tables_) {
      for (auto& page : table) page = reversed ? num_pages - 1 - page : page;
      max_pages_ = std::max(max_pages_, static_cast<int>(table.size()));
    }
    keys_ = upload(data.k, num_pages, data.shape.head_dim);
    if (!data.values_of_keys) values_ = upload(data.v, num_pages, data.shape.values_dim());
  }

  /// Attention of a chunk of these rows, each as bytes of one row of the result.
  std::vector<std::vector<std::byte>> attend(const std::vector<Rows>& chunk,
                                             int multiprocessors) const {
    const ModelShape& shape = data_.shape;
    const int width = shape.q_width() + shape.num_kv_heads * (shape.head_dim + shape.values_dim());
    std::vector<Segment> segments;
    std::vector<std::int32_t> positions, sequences, pages;
    reference::Vector qkv;
    int num_rows = 0;
    for (const Rows& rows : chunk) {
      const auto& table = tables_[static_cast<std::size_t>(rows.sequence)];
      segments.push_back({num_rows, rows.count, rows.first, table.data()});
      auto padded = table;
      padded.resize(static_cast<std::size_t>(max_pages_), -1);
      pages.insert(pages.end(), padded.begin(), padded.end());
      for (int i = 0; i < rows.count; ++i, ++num_rows) {
        positions.push_back(rows.first + i);
        sequences.push_back(static_cast<std::int32_t>(segments.size() - 1));
        const auto& q = data_.query(rows.sequence, rows.first + i);
        qkv.insert(qkv.end(), q.begin(), q.end());
        qkv.resize(static_cast<std::size_t>(num_rows + 1) * static_cast<std::size_t>(width));
      }
    }
    cuda::AttentionPlan plan;
    cuda::AttendedHeads heads(shape);
    heads.window = data_.window;
    heads.sinks = !data_.sinks.empty();
    plan.by_groups = by_groups(heads);
    const auto workspace_rows = cuda::attention_workspace_rows(heads, num_rows);
    cuda::plan_attention(heads, segments, multiprocessors, workspace_rows, plan);
    const DeviceBytes device_qkv(encode(qkv, data_.dtype));
    const std::size_t row_bytes =
        static_cast<std::size_t>(shape.heads_width()) * size_of(data_.dtype);
    const DeviceBytes out(static_cast<std::size_t>(num_rows) * row_bytes);
    const DeviceArray<std::int32_t> device_positions(positions);
    const DeviceArray<std::int32_t> device_sequences(sequences);
    const DeviceArray<std::int32_t> device_pages(pages);
    const DeviceArray<cuda::AttentionTile> tiles(plan.tiles);
    const DeviceArray<cuda::AttentionMerge> merges(plan.merges);
    const DeviceArray<float> workspace(
        static_cast<std::size_t>(cuda::attention_workspace_floats(heads, num_rows)));
    const DeviceArray<float> sinks(data_.sinks);
    cuda::AttentionArgs args;
    args.kv = {keys_->get(),       data_.values_of_keys ? keys_->get() : values_->get(),
               shape.num_kv_heads, shape.head_dim,
               page_tokens_,       shape.value_dim};
    args.window = data_.window;
    args.sinks = data_.sinks.empty() ? nullptr : sinks.get();
    args.map = {device_positions.get(), device_sequences.get(), device_pages.get(), max_pages_};
    args.num_heads = shape.num_heads;
    const int group = shape.num_heads / shape.num_kv_heads;
    args.groups = {group, 0, group};
    args.num_rows = num_rows;
    args.qkv = device_qkv.get();
    args.qkv_stride = width;
    args.out = out.get();
    args.tiles = tiles.get();
    args.num_wide = plan.num_wide;
    args.num_narrow = plan.num_narrow;
    args.merges = merges.get();
    args.num_merges = static_cast<int>(plan.merges.size());
    args.workspace = workspace.get();
    const DeviceArray<float> totals(static_cast<std::size_t>(cuda::attention_totals_floats(heads)));
    args.wgmma = plan.by_groups;
    args.totals = totals.get();
    cuda::attention(nullptr, data_.dtype, args);
    const auto bytes = out.host();
    std::vector<std::vector<std::byte>> result;
    for (auto at = bytes.begin(); at != bytes.end(); at += static_cast<std::ptrdiff_t>(row_bytes)) {
      result.emplace_back(at, at + static_cast<std::ptrdiff_t>(row_bytes));
    }
    return result;
  }

 private:
  /// As ChunkPlan chooses, which leaves latents to the other kernels.
  bool by_groups(const cuda::AttendedHeads& heads) const {
    static const bool can = cuda::why_no_chosen_wgmma().empty();
    return can && !data_.values_of_keys && cuda::wgmma_attends(heads, data_.dtype);
  }

  std::unique_ptr<DeviceBytes> upload(const std::vector<reference::Matrix>& rows, int num_pages,
                                      int width) const {
    const ModelShape& shape = data_.shape;
    const std::size_t element = size_of(data_.dtype);
    const auto page_elements = static_cast<std::size_t>(page_tokens_ * shape.num_kv_heads * width);
    std::vector<std::byte> bytes(static_cast<std::size_t>(num_pages) * page_elements * element,
                                 std::byte{0xff});
    for (std::size_t s = 0; s < rows.size(); ++s) {
      for (std::size_t t = 0; t < rows[s].size(); ++t) {
        const auto row = encode(rows[s][t], data_.dtype);
        const int page = tables_[s][t / static_cast<std::size_t>(page_tokens_)];
        for (int head = 0; head < shape.num_kv_heads; ++head) {
          const auto d = static_cast<std::size_t>(width);
          const auto token = t % static_cast<std::size_t>(page_tokens_);
          const auto place = static_cast<std::size_t>(page * shape.num_kv_heads + head);
          std::memcpy(
              bytes.data() + (place * static_cast<std::size_t>(page_tokens_) + token) * d * element,
              row.data() + static_cast<std::size_t>(head) * d * element, d * element);
        }
      }
    }
    return std::make_unique<DeviceBytes>(bytes);
  }

  const Sequences& data_;
  int page_tokens_;
  int max_pages_ = 0;
  std::vector<std::vector<std::int32_t>> tables_;
  std::unique_ptr<DeviceBytes> keys_;
  std::unique_ptr<DeviceBytes> values_;
};

class CudaAttention : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { skip_without_device(); }

  /// Results are averages of values of about 1; weights are rounded to 16 bits before they are
  /// multiplied, and the result once more.
  double allowed() const {
    return dtype_ == DType::bfloat16 ? 0.02 : dtype_ == DType::float16 ? 0.0025 : 1e-5;
  }
  void expect_rows(const Sequences& data, const std::vector<Rows>& chunk,
                   const std::vector<std::vector<std::byte>>& got) const {
    std::size_t at = 0;
    for (const Rows& rows : chunk) {
      for (int i = 0; i < rows.count; ++i, ++at) {
        const auto wanted = data.expected(rows.sequence, rows.first + i);
        const auto row = decode(got[at].data(), wanted.size(), dtype_);
        for (std::size_t c = 0; c < row.size(); ++c) {
          ASSERT_NEAR(row[c], wanted[c], allowed())
              << "position " << rows.first + i << " column " << c << " head_dim "
              << data.shape.head_dim << " heads " << data.shape.num_heads;
        }
      }
    }
  }

  DType dtype_ = GetParam();
  Random random_{3, dtype_};
};

TEST_P(CudaAttention, AllHeadDims) {
  for (const int head_dim : {2, 10, 16, 32, 64, 80, 128, 136, 256, 512}) {
    const Sequences data(shape_of(2, 1, head_dim), dtype_, {70, 3}, 0, random_);
    const Cache cache(data, 64, true);
    // The first is wide, the others are narrow.
    const std::vector<Rows> chunk = {{0, 0, 65}, {1, 0, 3}, {0, 69, 1}};
    expect_rows(data, chunk, cache.attend(chunk, split_none));
  }
}

TEST_P(CudaAttention, AllGroups) {
  // Group sizes that do not divide the matrices' rows, and such that need several blocks per kv
  // head.
  for (const auto& [heads, kv_heads] : {std::pair{3, 3}, {6, 2}, {20, 1}, {130, 1}}) {
    const Sequences data(shape_of(heads, kv_heads, 16), dtype_, {67}, 60, random_);
    const Cache cache(data, 128, false);
    const std::vector<Rows> wide = {{0, 60, 7}};
    const std::vector<Rows> narrow = {{0, 66, 1}};
    expect_rows(data, wide, cache.attend(wide, split_none));
    expect_rows(data, narrow, cache.attend(narrow, split_none));
  }
}

TEST_P(CudaAttention, RowsDoNotDependOnTheirCompany) {
  // Three splits of keys; rows 1000..1045 lie on both sides of a split (1024).
  for (const int heads : {1, 6}) {
    // The plain kernel of float32 takes every row and head by itself, and slowly.
    if (dtype_ == DType::float32 && heads > 1) continue;
    const Sequences data(shape_of(heads, heads == 1 ? 1 : 2, 16), dtype_, {1046, 30}, 0, random_);
    const Cache cache(data, 64, false);
    const std::vector<Rows> whole = {{0, 1000, 46}};
    const auto wanted = cache.attend(whole, split_none);
    expect_rows(data, {{0, 1000, 46}}, wanted);
    EXPECT_EQ(cache.attend(whole, split_all), wanted);
    EXPECT_EQ(Cache(data, 128, true).attend(whole, split_all), wanted);

    std::vector<Rows> alone;
    for (const int position : {1000, 1001, 1023, 1024, 1045}) alone.push_back({0, position, 1});
    for (const int multiprocessors : {split_none, split_all}) {
      const auto got = cache.attend(alone, multiprocessors);
      for (std::size_t i = 0; i < alone.size(); ++i) {
        EXPECT_EQ(got[i], wanted[static_cast<std::size_t>(alone[i].first - 1000)])
            << "position " << alone[i].first;
      }
    }
    // Pieces of other sizes beside rows of another sequence.
    const std::vector<Rows> pieces = {{1, 0, 29}, {0, 1000, 3}, {1, 29, 1}, {0, 1003, 43}};
    const auto got = cache.attend(pieces, split_none);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(got[29 + i], wanted[i]);
    for (std::size_t i = 0; i < 43; ++i) EXPECT_EQ(got[33 + i], wanted[3 + i]);
  }
}

TEST_P(CudaAttention, WideAndNarrowAgreeForEveryHeadDim) {
  for (const int head_dim : {64, 128, 256, 512}) {
    const Sequences data(shape_of(1, 1, head_dim), dtype_, {575}, 505, random_);
    const Cache cache(data, 64, false);
    // More rows than the narrow tiles of any kernel have.
    const auto wide = cache.attend({{0, 505, 70}}, split_none);
    const auto narrow = cache.attend({{0, 505, 1}, {0, 511, 2}, {0, 529, 1}}, split_all);
    EXPECT_EQ(narrow[0], wide[0]) << "head_dim " << head_dim;
    EXPECT_EQ(narrow[1], wide[6]) << "head_dim " << head_dim;
    EXPECT_EQ(narrow[2], wide[7]) << "head_dim " << head_dim;
    EXPECT_EQ(narrow[3], wide[24]) << "head_dim " << head_dim;
  }
}

/// Windows narrower than a block and wider than a split; rows keep their bits in other company.
TEST_P(CudaAttention, WindowsAndSinks) {
  for (const int window : {1, 40, 130, 700}) {
    for (const bool sinks : {false, true}) {
      if (dtype_ == DType::float32 && window == 700 && sinks) continue;  // slow, and as before
      Sequences data(shape_of(4, 2, 16), dtype_, {1046, 30}, 0, random_);
      data.window = window;
      if (sinks) data.sinks = {0.3F, -2.0F, 4.0F, 40.0F};
      const Cache cache(data, 64, false);
      const std::vector<Rows> whole = {{0, 1000, 46}};
      const auto wanted = cache.attend(whole, split_none);
      expect_rows(data, whole, wanted);
      EXPECT_EQ(cache.attend(whole, split_all), wanted) << "window " << window;
      std::vector<Rows> alone;
      for (const int position : {1000, 1001, 1023, 1024, 1045}) alone.push_back({0, position, 1});
      alone.push_back({1, 0, 30});
      for (const int multiprocessors : {split_none, split_all}) {
        const auto got = cache.attend(alone, multiprocessors);
        for (std::size_t i = 0; i + 1 < alone.size(); ++i) {
          EXPECT_EQ(got[i], wanted[static_cast<std::size_t>(alone[i].first - 1000)])
              << "position " << alone[i].first << ", window " << window;
        }
        expect_rows(data, {alone.back()}, {got.end() - 30, got.end()});
      }
    }
  }
}

/// Values narrower than keys, and such that are the first part of the keys.
TEST_P(CudaAttention, ValuesUnlikeKeys) {
  for (const auto& [head_dim, value_dim, of_keys] : {std::tuple{24, 10, false},
                                                     {192, 128, false},
                                                     {40, 32, true},
                                                     {576, 512, true},
                                                     {320, 256, true},
                                                     {70, 33, true}}) {
    ModelShape shape = shape_of(of_keys ? 20 : 4, of_keys ? 1 : 2, head_dim);
    shape.value_dim = value_dim;
    Sequences data(shape, dtype_, {70, 3}, 0, random_);
    if (of_keys) data.take_values_from_keys();
    const Cache cache(data, 64, true);
    const std::vector<Rows> chunk = {{0, 44, 21}, {1, 0, 3}, {0, 69, 1}};
    const auto got = cache.attend(chunk, split_none);
    expect_rows(data, chunk, got);
    EXPECT_EQ(cache.attend({{0, 60, 1}}, split_none)[0], got[16]) << "head_dim " << head_dim;
  }
}

/// Blocks of keys that a row does not see are multiplied with weights of 0, which must not touch
/// what it has, however small that is beside the values there: tensor cores align what they add.
TEST_P(CudaAttention, ZeroWeightsOfLargeValuesChangeNoBit) {
  const double large = dtype_ == DType::float16 ? 32768 : 0x1p100;
  for (const int head_dim : {64, 128, 512}) {
    Sequences data(shape_of(1, 1, head_dim), dtype_, {330}, 250, random_);
    for (std::size_t t = 0; t < 330; ++t) {
      for (double& x : data.v[0][t]) {
        x = t < 257 ? std::ldexp(x, -static_cast<int>(t % 20)) : std::copysign(large, x);
      }
    }
    const Cache cache(data, 64, false);
    // The first rows see keys up to 255 and 256: blocks from 256 and 320 on are others' in part or
    // wholly.
    const auto wide = cache.attend({{0, 250, 80}}, split_none);
    for (int position = 250; position < 257; ++position) {
      const auto alone = cache.attend({{0, position, 1}}, split_none);
      EXPECT_EQ(alone[0], wide[static_cast<std::size_t>(position - 250)])
          << "position " << position << ", head_dim " << head_dim;
    }
  }
}

TEST_P(CudaAttention, LargeScoresStayFinite) {
  Sequences data(shape_of(1, 1, 16), dtype_, {600}, 596, random_);
  for (auto& row : data.q[0]) {
    for (double& x : row) x *= 64;
  }
  const Cache cache(data, 64, false);
  // Nearly all weight on one key: the result is that key's value, wherever its split lies.
  const std::vector<Rows> chunk = {{0, 596, 4}};
  expect_rows(data, chunk, cache.attend(chunk, split_all));
}

/// The same of windows, on both sides.
TEST_P(CudaAttention, WhatIsNotFiniteStaysInItsWindow) {
  Sequences data(shape_of(2, 1, 64), dtype_, {560}, 480, random_);
  data.window = 20;
  const auto clean = Cache(data, 64, false).attend({{0, 480, 80}}, split_none);
  for (const int position : {503, 511, 512}) {
    Sequences bad = data;
    for (const int at : {position, position + 2}) {
      bad.v[0][static_cast<std::size_t>(at)][3] = std::numeric_limits<double>::infinity();
    }
    const Cache cache(bad, 64, false);
    for (const int multiprocessors : {split_none, split_all}) {
      const auto got = cache.attend({{0, 480, 80}}, multiprocessors);
      for (int row = 480; row < 560; ++row) {
        const auto at = static_cast<std::size_t>(row - 480);
        const auto values = decode(got[at].data(), 128, dtype_);
        const bool finite =
            std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
        const bool sees = row >= position && row < position + 2 + data.window;
        EXPECT_EQ(finite, !sees) << "row " << row << ", position " << position;
        if (!sees) {
          EXPECT_EQ(got[at], clean[at]) << "row " << row;
        }
      }
    }
  }
}

/// Rows that do not see a position which is not finite keep their bits, in the same tile or not.
TEST_P(CudaAttention, WhatIsNotFiniteStaysWithTheRowsThatSeeIt) {
  for (const auto& [heads, head_dim] : {std::pair{1, 64}, {2, 512}}) {
    Sequences data(shape_of(heads, 1, head_dim), dtype_, {530}, 500, random_);
    const auto clean = Cache(data, 64, false).attend({{0, 500, 30}}, split_none);
    for (const int position : {503, 511, 512}) {  // the last two on both sides of a split
      Sequences bad = data;
      bad.v[0][static_cast<std::size_t>(position)][3] = std::numeric_limits<double>::infinity();
      const Cache cache(bad, 64, false);
      std::vector<std::vector<std::byte>> got = cache.attend({{0, 500, 30}}, split_all);
      const auto pieces = cache.attend({{0, 500, 5}, {0, 511, 1}, {0, 512, 18}}, split_none);
      got.insert(got.end(), pieces.begin(), pieces.end());
      for (std::size_t i = 0; i < got.size(); ++i) {
        const std::size_t at = i < 35 ? i % 30 : i - 24;  // the row's place among `clean`
        const auto values =
            decode(got[i].data(), static_cast<std::size_t>(heads * head_dim), dtype_);
        const bool finite =
            std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
        const int row = 500 + static_cast<int>(at);
        EXPECT_EQ(finite, row < position) << "row " << row << ", position " << position;
        if (row >= position) continue;
        EXPECT_EQ(got[i], clean[at]) << "row " << row;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaAttention,
                         ::testing::Values(DType::bfloat16, DType::float16, DType::float32),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace atl::testing
