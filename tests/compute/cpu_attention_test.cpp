// timeout: 150
// Attention of every instruction set this CPU has, and of AVX-512 in plain loops, against the
// oracle's, and a row's bits whatever it is computed with.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <tuple>

#include "compute/cpu/kernels.hpp"
#include "compute/cpu/memory.hpp"
#include "tests/compute/kernel_tables.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::AlignedBuffer;
using compute::split_tokens;

class CpuAttention : public ::testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  void SetUp() override {
    kernels_ = kernel_table(std::get<0>(GetParam()), dtype_);
    if (kernels_ == nullptr) GTEST_SKIP() << "not on this CPU";
  }
  /// Outputs are averages of values of about 1. In 16 bits, q and k may round the other way.
  double allowed() const {
    return dtype_ == DType::bfloat16 ? 0.03 : dtype_ == DType::float16 ? 0.004 : 2e-5;
  }

  DType dtype_ = std::get<1>(GetParam());
  const compute::Kernels* kernels_ = nullptr;
  Random random_{7, dtype_};
};

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// One sequence whose q, k and v go through rope() and attend().
struct AttentionCase {
  AttentionCase(const ModelShape& model_shape, DType type, Random& random, int num_tokens)
      : tokens(num_tokens),
        shape(model_shape),
        dtype(type),
        width(shape.q_width() + 2 * shape.kv_width()),
        layout{shape.num_heads,
               shape.num_kv_heads,
               shape.head_dim,
               (shape.head_dim + 15) / 16 * 16,
               64,
               shape.head_dim},
        rows(random.matrix(tokens, width, std::sqrt(width))) {
    for (int page = (tokens + 63) / 64; page > 0; --page) pages.push_back(page > 1 ? page + 1 : 1);
    const bool whole = shape.qk_norm == QkNorm::whole_row;
    q_norm = random.vector(whole ? shape.q_width() : shape.head_dim, 1, 0.2);
    k_norm = random.vector(whole ? shape.kv_width() : shape.head_dim, 1, 0.2);
  }

  reference::Matrix expected() const {
    const auto round = rounding_of(dtype);
    reference::Matrix q, k, v;
    for (int t = 0; t < tokens; ++t) {
      const auto& row = rows[static_cast<std::size_t>(t)];
      const auto k_begin = row.begin() + shape.q_width();
      const auto v_begin = k_begin + shape.kv_width();
      q.push_back(reference::rounded(
          reference::prepare_heads({row.begin(), k_begin}, q_norm, t, shape), round));
      k.push_back(reference::rounded(reference::prepare_heads({k_begin, v_begin}, k_norm, t, shape),
                                     round));
      v.emplace_back(v_begin, row.end());
    }
    return reference::attention(q, k, v, shape);
  }

  /// Angles of index * step: [64][cos: head_dim / 2][sin: head_dim / 2].
  std::vector<double> rope_table(int step) const {
    std::vector<double> table;
    for (int index = 0; index < 64; ++index) {
      for (const bool sine : {false, true}) {
        for (int i = 0; i < shape.head_dim / 2; ++i) {
          const double angle = index * step * std::pow(shape.rope_theta, -2.0 * i / shape.head_dim);
          table.push_back(sine ? std::sin(angle) : std::cos(angle));
        }
      }
    }
    return table;
  }

  /// Rotates all rows, in two calls, and fills the cache.
  void rotate(const compute::Kernels& kernels) {
    std::vector<double> flat;
    for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
    qkv = encode(flat, dtype);
    kv = AlignedBuffer(static_cast<std::size_t>(layout.page_elements()) * (pages.size() + 2) *
                       size_of(dtype));
    std::memset(kv.data(), former_owner, static_cast<std::size_t>(kv.bytes()));
    std::vector<std::int32_t> positions(tokens), page_of;
    std::iota(positions.begin(), positions.end(), 0);
    for (int t = 0; t < tokens; ++t) page_of.push_back(pages[t / 64U]);
    const auto coarse = rope_table(64);
    const auto fine = rope_table(1);
    const std::vector<float> q_floats(q_norm.begin(), q_norm.end());
    const std::vector<float> k_floats(k_norm.begin(), k_norm.end());
    compute::RopeArgs rope;
    rope.layout = layout;
    rope.tables = {coarse.data(), fine.data(), shape.head_dim};
    rope.norm = shape.qk_norm;
    rope.q_norm = q_floats.data();
    rope.k_norm = k_floats.data();
    rope.eps = shape.rms_eps;
    rope.qkv = qkv.data();
    rope.kv = kv.data();
    rope.positions = positions.data();
    rope.pages = page_of.data();
    kernels.rope(rope, 0, 77);
    kernels.rope(rope, 77, tokens);
  }

  /// Attention of some rows, of all splits at once or, `in_splits`, each by itself, the last one
  /// first: [num_rows * heads * head_dim].
  std::vector<std::byte> attend(const compute::Kernels& kernels, int first, int num_rows,
                                bool in_splits = false) const {
    const int queries = num_rows * shape.num_heads / shape.num_kv_heads;
    const int splits = (first + num_rows - 1) / split_tokens + 1;
    const AlignedBuffer scratch(
        static_cast<std::size_t>(compute::attend_scratch_floats(layout, queries)) * sizeof(float));
    const AlignedBuffer states(
        static_cast<std::size_t>(splits * compute::attend_state_floats(layout, queries)) *
        sizeof(float));
    std::vector<std::byte> out(static_cast<std::size_t>(num_rows * shape.q_width()) *
                               size_of(dtype));
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      compute::AttendArgs args;
      args.layout = layout;
      args.qkv = qkv.data() + static_cast<std::size_t>(first * width) * size_of(dtype);
      args.qkv_stride = width;
      args.out = out.data();
      args.kv = kv.data();
      args.pages = pages.data();
      args.num_rows = num_rows;
      args.first_position = first;
      args.kv_head = head;
      args.num_heads = shape.num_heads / shape.num_kv_heads;
      args.first_head = head * args.num_heads;
      args.scale = shape.logit_scale();
      args.scratch = scratch.as<float>();
      if (!in_splits) {
        kernels.attend(args);
        continue;
      }
      args.partial = states.as<float>();
      for (int split = splits - 1; split >= 0; --split) {
        args.first_split = split;
        args.end_split = split + 1;
        kernels.attend(args);
      }
      kernels.merge_splits(args);
    }
    return out;
  }

  /// Attention of all rows in three pieces: [tokens * heads * head_dim].
  std::vector<double> attend_all(const compute::Kernels& kernels) const {
    std::vector<std::byte> out;
    for (const auto& [first, end] : {std::pair{0, 50}, {50, 51}, {51, tokens}}) {
      const auto piece = attend(kernels, first, end - first);
      out.insert(out.end(), piece.begin(), piece.end());
    }
    return decode(out.data(), out.size() / size_of(dtype), dtype);
  }

  int tokens;
  ModelShape shape;
  DType dtype;
  int width;
  compute::KvLayout layout;
  reference::Matrix rows;
  reference::Vector q_norm;
  reference::Vector k_norm;
  std::vector<std::int32_t> pages;  ///< falling, 0 and 2 are nobody's
  int former_owner = 0;             ///< byte that the pages hold before
  std::vector<std::byte> qkv;
  AlignedBuffer kv;
};

TEST_P(CpuAttention, IsTheOraclesAfterRope) {
  for (const int head_dim : {2, 10, 16, 32, 64, 80, 128, 512}) {
    for (const QkNorm norm : {QkNorm::none, QkNorm::per_head, QkNorm::whole_row}) {
      ModelShape shape;
      shape.num_heads = 6;
      shape.num_kv_heads = norm == QkNorm::none ? 6 : 2;
      shape.head_dim = head_dim;
      shape.qk_norm = norm;
      AttentionCase attention(shape, dtype_, random_, 140);
      attention.rotate(*kernels_);
      const auto got = attention.attend_all(*kernels_);
      const auto wanted = attention.expected();
      const auto q_width = static_cast<std::size_t>(shape.q_width());
      for (std::size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], wanted[i / q_width][i % q_width], allowed())
            << "row " << i / q_width << ", head_dim " << head_dim;
      }
    }
  }
}

/// Rows before a position that is not finite, other heads, and what lies in pages beyond the
/// sequence: none of it is multiplied.
TEST_P(CpuAttention, KeepsWhatIsNotFiniteToTheRowsThatSeeIt) {
  for (const int group : {1, 3}) {
    ModelShape shape;
    shape.num_heads = 2 * group;
    shape.num_kv_heads = 2;
    shape.head_dim = 16;
    shape.qk_norm = QkNorm::per_head;
    AttentionCase attention(shape, dtype_, random_, 140);
    attention.rotate(*kernels_);
    const auto clean = attention.attend_all(*kernels_);
    const auto good_rows = attention.rows;
    attention.former_owner = 0xff;
    for (const int position : {0, 1, 49, 50, 62, 66, 128, 139}) {
      for (const bool of_keys : {false, true}) {
        attention.rows = good_rows;
        const int first = shape.q_width() + (of_keys ? 0 : shape.kv_width());
        attention.rows[static_cast<std::size_t>(position)][static_cast<std::size_t>(first + 5)] =
            of_keys ? not_a_number : infinite;
        attention.rotate(*kernels_);
        const auto got = attention.attend_all(*kernels_);
        const int d = shape.head_dim;
        for (int i = 0; i < static_cast<int>(got.size()); i += d) {
          const int row = i / shape.q_width();
          const bool sees = row >= position && i % shape.q_width() / d < group;
          const auto at = got.begin() + i;
          EXPECT_EQ(std::all_of(at, at + d, [](double x) { return std::isfinite(x); }), !sees)
              << "row " << row << ", position " << position;
          if (sees) continue;
          EXPECT_TRUE(std::equal(at, at + d, clean.begin() + i)) << "row " << row;
        }
      }
    }
  }
}

/// Rows around the borders of splits, first and number: each of them sees one split more at the end
/// than at the beginning.
constexpr std::pair<int, int> border_rows[] = {{split_tokens - 9, 31}, {2 * split_tokens - 5, 9}};

AttentionCase long_case(int group, int head_dim, DType dtype, Random& random) {
  ModelShape shape;
  shape.num_heads = group;
  shape.num_kv_heads = 1;
  shape.head_dim = head_dim;
  return {shape, dtype, random, 2 * split_tokens + 4};
}

TEST_P(CpuAttention, OverSplitsIsTheOracles) {
  AttentionCase attention = long_case(3, 16, dtype_, random_);
  attention.rotate(*kernels_);
  const auto wanted = attention.expected();
  const auto q_width = static_cast<std::size_t>(attention.shape.q_width());
  for (const auto& [first, count] : border_rows) {
    const auto out = attention.attend(*kernels_, first, count);
    const auto got = decode(out.data(), out.size() / size_of(dtype_), dtype_);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::size_t row = static_cast<std::size_t>(first) + i / q_width;
      ASSERT_NEAR(got[i], wanted[row][i % q_width], allowed()) << "row " << row;
    }
  }
}

TEST_P(CpuAttention, ARowsBitsDependOnNothingBesideIt) {
  for (const auto& [group, head_dim] : {std::pair{1, 64}, {4, 80}, {8, 16}}) {
    AttentionCase attention = long_case(group, head_dim, dtype_, random_);
    attention.rotate(*kernels_);
    for (const auto& [first, count] : border_rows) {
      const auto whole = attention.attend(*kernels_, first, count);
      EXPECT_EQ(attention.attend(*kernels_, first, count, /*in_splits=*/true), whole);
      for (const int piece : {1, 4}) {
        std::vector<std::byte> out;
        for (int row = 0; row < count; row += piece) {
          const auto rows = attention.attend(*kernels_, first + row, std::min(piece, count - row),
                                             /*in_splits=*/row % 3 == 1);
          out.insert(out.end(), rows.begin(), rows.end());
        }
        EXPECT_EQ(out, whole) << "pieces of " << piece << " from " << first << ", group " << group;
      }
    }
  }
}

TEST_P(CpuAttention, KeepsWhatIsNotFiniteToItsSplit) {
  AttentionCase attention = long_case(2, 16, dtype_, random_);
  attention.rotate(*kernels_);
  const auto [first, count] = border_rows[0];
  const auto clean = attention.attend(*kernels_, first, count);
  const auto good_rows = attention.rows;
  attention.former_owner = 0xff;
  for (const int position : {3, split_tokens - 1, split_tokens, split_tokens + 1}) {
    for (const bool of_keys : {false, true}) {
      attention.rows = good_rows;
      const int at = attention.shape.q_width() + (of_keys ? 0 : attention.shape.kv_width());
      attention.rows[static_cast<std::size_t>(position)][static_cast<std::size_t>(at + 5)] =
          of_keys ? not_a_number : infinite;
      attention.rotate(*kernels_);
      for (const bool in_splits : {false, true}) {
        const auto out = attention.attend(*kernels_, first, count, in_splits);
        const auto got = decode(out.data(), out.size() / size_of(dtype_), dtype_);
        const std::size_t row_bytes = out.size() / static_cast<std::size_t>(count);
        for (int row = 0; row < count; ++row) {
          const bool sees = first + row >= position;
          const auto begin = static_cast<std::size_t>(row) * row_bytes;
          EXPECT_EQ(std::isfinite(got[begin / size_of(dtype_) + 5]), !sees)
              << "row " << first + row << ", position " << position;
          if (sees) continue;
          EXPECT_TRUE(std::equal(out.begin() + begin, out.begin() + begin + row_bytes,
                                 clean.begin() + begin))
              << "row " << first + row << ", position " << position;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, CpuAttention,
                         ::testing::Combine(::testing::ValuesIn(kernel_tables),
                                            ::testing::Values(DType::bfloat16, DType::float16,
                                                              DType::float32)),
                         [](const auto& table) { return table_name(table.param); });

}  // namespace
}  // namespace atl::testing
