// Rows that go to each node once, against plain loops: packed with tails, forwarded inside a node,
// their results on the way back.

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "compute/across_rows.hpp"
#include "tests/cuda/routed.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

namespace cuda = compute::cuda;
using compute::AcrossRow;
using Bytes = std::vector<std::byte>;
using Indices = std::vector<std::int32_t>;

/// Rows with tails that one rank packed for all nodes, on the device and here.
struct PackedForNodes {
  Bytes rows;  // [T, H], what was packed
  Bytes packed;
  Indices counts;  // of nodes: rows, then returns
  Indices chosen, sent;
  std::vector<float> weights;
};

struct Case {
  int hidden;
  int top_k;
  int nodes;
  int most_replicas;
};

class CudaForward : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { skip_without_device(); }

  AcrossRow form_of(const Case& c) const { return compute::across_row(c.hidden, dtype_, c.top_k); }
  std::size_t row_bytes(const Case& c) const {
    return static_cast<std::size_t>(c.hidden) * size_of(dtype_);
  }
  Bytes random_rows(std::size_t count, const Case& c) {
    return encode(random_.vector(static_cast<int>(count) * c.hidden, 0, 1), dtype_);
  }

  PackedForNodes pack(const Case& c, const compute::ExpertPlaces& places, int tokens) {
    const auto experts = static_cast<int>(places.first_of_expert.size()) - 1;
    const auto logits = random_.vector(tokens * experts, 0, 2);
    const RoutedOnDevice routed({logits.begin(), logits.end()}, places, c.top_k, true, true);
    PackedForNodes result;
    result.rows = random_rows(routed.tokens, c);
    const auto counts = routed.counts.host();
    result.counts.assign(counts.begin() + places.num_places(), counts.end());
    result.chosen = routed.chosen.host();
    result.sent = routed.sent.host();
    result.weights = routed.weights.host();
    const auto rows = std::accumulate(result.counts.begin(), result.counts.begin() + c.nodes, 0);
    const DeviceBytes in(result.rows);
    const DeviceBytes packed(static_cast<std::size_t>(rows * form_of(c).bytes));
    cuda::PackForNodesArgs args;
    args.rows = in.get();
    args.form = form_of(c);
    args.replicas = routed.table();
    args.first_of_node = routed.first_of_node.get();
    args.chosen = routed.chosen.get();
    args.weights = routed.weights.get();
    args.sent = routed.sent.get();
    args.packed = packed.get();
    args.num_tokens = tokens;
    args.top_k = c.top_k;
    args.hidden = c.hidden;
    cuda::pack_for_nodes(nullptr, dtype_, args);
    result.packed = packed.host();
    return result;
  }

  /// Each token's row, and a tail that says which of its experts are on the node.
  void expect_packed(const Case& c, const compute::ExpertPlaces& places,
                     const PackedForNodes& got) const {
    const AcrossRow form = form_of(c);
    const auto k = static_cast<std::size_t>(c.top_k);
    for (std::size_t i = 0; i < got.sent.size(); ++i) {
      const std::size_t t = i / k;
      const std::byte* row = got.packed.data() + got.sent[i] * form.bytes;
      ASSERT_EQ(std::memcmp(row, got.rows.data() + t * row_bytes(c), row_bytes(c)), 0) << i;
      const std::int32_t node = places.replicas[static_cast<std::size_t>(got.chosen[i])].node;
      for (std::size_t j = 0; j < k; ++j) {
        const auto& other = places.replicas[static_cast<std::size_t>(got.chosen[t * k + j])];
        const std::int32_t first = places.first_of_node[static_cast<std::size_t>(node)];
        ASSERT_EQ(form.places_of(row)[j], other.node == node ? other.place - first : -1);
        ASSERT_EQ(form.weights_of(row)[j], got.weights[t * k + j]);
      }
    }
  }

  /// The rows of one node among those packed.
  Bytes rows_of_node(const Case& c, const PackedForNodes& from, int node) const {
    const auto first = std::accumulate(from.counts.begin(), from.counts.begin() + node, 0);
    const auto bytes = form_of(c).bytes;
    const auto begin = from.packed.begin() + first * bytes;
    return {begin, begin + from.counts[static_cast<std::size_t>(node)] * bytes};
  }

  /// regroup and fold of own rows and arrived ones, against loops over the tails.
  void expect_forwarded(const Case& c, int num_places, const Bytes& own, const Bytes& arrived);

  DType dtype_ = GetParam();
  Random random_{3, dtype_};
};

/// The same by plain loops.
struct PlainForward {
  PlainForward(const AcrossRow& form, const Bytes& own, const Bytes& arrived, int num_places,
               int top_k)
      : num_own(own.size() / static_cast<std::size_t>(form.bytes)) {
    for (const Bytes* rows : {&own, &arrived}) {
      for (std::size_t at = 0; at < rows->size(); at += static_cast<std::size_t>(form.bytes)) {
        row.push_back(rows->data() + at);
      }
    }
    slots.assign(row.size() * static_cast<std::size_t>(top_k), -1);
    for (int place = 0; place < num_places; ++place) {
      for (std::size_t q = 0; q < row.size(); ++q) {
        for (int j = 0; j < top_k; ++j) {
          if (form.places_of(row[q])[j] != place) continue;
          slots[q * static_cast<std::size_t>(top_k) + static_cast<std::size_t>(j)] = forwarded++;
        }
      }
    }
    for (std::size_t q = 0; q < row.size(); ++q) {
      std::int32_t& next = q < num_own ? own_returns : arrived_returns;
      int here = 0;
      for (int j = 0; j < top_k; ++j) here += form.places_of(row[q])[j] >= 0 ? 1 : 0;
      returns.push_back(next);
      next += here == top_k ? 1 : here;
    }
  }

  std::vector<const std::byte*> row;
  std::size_t num_own;
  std::int32_t forwarded = 0, own_returns = 0, arrived_returns = 0;
  Indices slots, returns;
};

void CudaForward::expect_forwarded(const Case& c, int num_places, const Bytes& own,
                                   const Bytes& arrived) {
  const AcrossRow form = form_of(c);
  const PlainForward plain(form, own, arrived, num_places, c.top_k);
  const auto k = static_cast<std::size_t>(c.top_k);
  const DeviceBytes own_rows(own);
  const DeviceBytes arrived_rows(arrived);
  const DeviceArray<std::int32_t> slots(plain.slots.size());
  const DeviceArray<std::int32_t> returns(plain.returns.size());
  const DeviceBytes forwarded(static_cast<std::size_t>(plain.forwarded) * row_bytes(c));
  cuda::ForwardedRows args;
  args.own = own_rows.get();
  args.arrived = arrived_rows.get();
  args.num_own = static_cast<int>(plain.num_own);
  args.num_rows = static_cast<int>(plain.row.size());
  args.form = form;
  args.top_k = c.top_k;
  args.hidden = c.hidden;
  args.num_places = num_places;
  args.slots = slots.get();
  args.returns = returns.get();
  const DeviceArray<std::int32_t> scratch(
      static_cast<std::size_t>(cuda::group_scratch_ints(args.num_groups())));
  args.scratch = scratch.get();
  cuda::regroup(nullptr, dtype_, args, forwarded.get());
  ASSERT_EQ(slots.host(), plain.slots);
  ASSERT_EQ(returns.host(), plain.returns);
  const Bytes rows = forwarded.host();
  for (std::size_t i = 0; i < plain.slots.size(); ++i) {
    if (plain.slots[i] < 0) continue;
    const auto at = static_cast<std::size_t>(plain.slots[i]) * row_bytes(c);
    ASSERT_EQ(std::memcmp(rows.data() + at, plain.row[i / k], row_bytes(c)), 0) << i;
  }

  const Bytes results = random_rows(static_cast<std::size_t>(plain.forwarded), c);
  const DeviceBytes device_results(results);
  const DeviceBytes own_out(static_cast<std::size_t>(plain.own_returns) * row_bytes(c));
  const DeviceBytes arrived_out(static_cast<std::size_t>(plain.arrived_returns) * row_bytes(c));
  cuda::fold(nullptr, dtype_, args, device_results.get(), own_out.get(), arrived_out.get());
  const Bytes outs[] = {own_out.host(), arrived_out.host()};
  const auto values = decode(results.data(), results.size() / size_of(dtype_), dtype_);
  const auto hidden = static_cast<std::size_t>(c.hidden);
  for (std::size_t q = 0; q < plain.row.size(); ++q) {
    const Bytes& out = outs[q < plain.num_own ? 0 : 1];
    const std::byte* at = out.data() + static_cast<std::size_t>(plain.returns[q]) * row_bytes(c);
    const auto first = plain.slots.begin() + static_cast<std::ptrdiff_t>(q * k);
    if (std::find(first, first + c.top_k, -1) == first + c.top_k) {
      reference::Vector wanted;
      for (std::size_t i = 0; i < hidden; ++i) {
        float sum = 0;
        for (std::size_t j = 0; j < k; ++j) {
          const auto slot = static_cast<std::size_t>(plain.slots[q * k + j]);
          sum = std::fma(form.weights_of(plain.row[q])[j],
                         static_cast<float>(values[slot * hidden + i]), sum);
        }
        wanted.push_back(rounding_of(dtype_)(sum));
      }
      ASSERT_EQ(decode(at, hidden, dtype_), wanted) << "row " << q;
      continue;
    }
    for (std::size_t j = 0; j < k; ++j) {
      const std::int32_t slot = plain.slots[q * k + j];
      if (slot < 0) continue;
      const std::byte* result = results.data() + static_cast<std::size_t>(slot) * row_bytes(c);
      ASSERT_EQ(std::memcmp(at, result, row_bytes(c)), 0) << "row " << q << " choice " << j;
      at += row_bytes(c);
    }
  }
}

TEST_P(CudaForward, PacksForwardsAndFolds) {
  constexpr int widths[] = {1, 7, 8, 48, 129, 200, 2056};
  unsigned seed = 0;
  for (const int nodes : {1, 2, 5}) {
    for (int top_k = 1; top_k <= 8; ++top_k) {
      const Case c{widths[seed % std::size(widths)], top_k, nodes, 1 + static_cast<int>(seed % 3)};
      SCOPED_TRACE(::testing::Message()
                   << nodes << " nodes, top " << top_k << " of width " << c.hidden);
      const auto places = random_places(top_k + 4, nodes, c.most_replicas, ++seed);
      const PackedForNodes mine = pack(c, places, 23);
      expect_packed(c, places, mine);
      const PackedForNodes others = pack(c, places, 1 + static_cast<int>(seed) * 5);
      for (int node = 0; node < nodes; ++node) {
        const auto n = static_cast<std::size_t>(node);
        expect_forwarded(c, places.first_of_node[n + 1] - places.first_of_node[n],
                         rows_of_node(c, mine, node), rows_of_node(c, others, node));
      }
    }
  }
}

TEST_P(CudaForward, ManyRows) {
  // More rows than tiles of 16: a warp then takes several, one after another.
  const Case c{8, 2, 2, 1};
  const auto places = random_places(6, 2, 1, 2);
  const PackedForNodes mine = pack(c, places, 2500);
  expect_packed(c, places, mine);
  const auto first_of_second = places.first_of_node[1];
  expect_forwarded(c, places.num_places() - first_of_second, rows_of_node(c, mine, 1),
                   rows_of_node(c, mine, 1));
}

TEST_P(CudaForward, NoRows) {
  const Case c{48, 3, 2, 2};
  const auto places = random_places(5, 2, 2, 1);
  expect_packed(c, places, pack(c, places, 0));
  expect_forwarded(c, 3, {}, {});
  expect_forwarded(c, places.first_of_node[1], {}, rows_of_node(c, pack(c, places, 9), 0));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaForward,
                         ::testing::Values(DType::float32, DType::bfloat16, DType::float16),
                         [](const auto& type) { return std::string(name_of(type.param)); });

}  // namespace
}  // namespace atl::testing
