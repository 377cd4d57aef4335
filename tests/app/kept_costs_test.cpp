// What a planned step reads of weights that layers keep as codes, and how long that takes.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "app/model/described_model.hpp"
#include "app/plan/step_costs.hpp"
#include "tests/app/planned.hpp"
#include "tests/temporary_folder.hpp"
#include "tests/tiny_model.hpp"

namespace atl::testing {
namespace {

using compute::Weight;

/// Layers of experts whose three matrices are in FP8 with a scale for 16 columns.
ModelShape kept_shape() {
  ModelShape shape = tiny_shape();
  const Coding coding{Code::fp8, 16};
  shape.codings = {{},
                   {{Weight::gate, coding}, {Weight::up, coding}, {Weight::down, coding}},
                   {{Weight::qkv, coding}, {Weight::o, coding}}};
  shape.coding_of = {0, 1, 2};
  return shape;
}

class StepCost {
 public:
  explicit StepCost(const ModelShape& shape, bool cuda = false) {
    Machine machine = made_machine();
    machine.cuda = cuda;
    machine.flops_per_s = 1e18;  // reading decides
    machine.row_bytes_per_s = 0;
    costs_.emplace_back(machine, shape, DType::bfloat16, compute::whole_model(shape),
                        compute::OutputCut::rows);
  }
  double bytes(StepKind kind, int layer) const { return of(kind, layer).bytes; }
  double seconds(StepKind kind, int layer) const {
    const std::vector<std::int64_t> rows(5, 1);
    return costs_.front().seconds(kind, work(layer, rows));
  }

 private:
  static StepWork work(int layer, std::span<const std::int64_t> rows) {
    StepWork work;
    work.layer = layer;
    work.own_rows = work.all_rows = 5;
    work.expert_rows = rows;
    return work;
  }
  StepNeeds of(StepKind kind, int layer) const {
    const std::vector<std::int64_t> rows(5, 1);
    return costs_.front().needs(kind, work(layer, rows));
  }

  std::vector<StepCosts> costs_;
};

TEST(StepCosts, KeptWeightsAreReadAtTheirWidth) {
  const StepCost plain(tiny_shape());
  const StepCost kept(kept_shape());
  const StepCost on_device(kept_shape(), true);
  const ModelShape s = tiny_shape();
  // A byte for each of 48 or 40 columns, and a float32 for each 16 of them or fewer.
  const double elements = 5.0 * 3 * s.hidden * s.moe_intermediate;
  EXPECT_DOUBLE_EQ(plain.bytes(StepKind::experts, 1), 2 * elements);
  EXPECT_DOUBLE_EQ(kept.bytes(StepKind::experts, 1),
                   elements * ((48 + 12.0) / 48 * 2 + (40 + 12.0) / 40) / 3);
  EXPECT_DOUBLE_EQ(kept.seconds(StepKind::experts, 1),
                   kept.bytes(StepKind::experts, 1) / made_machine().bytes_per_s);
  EXPECT_DOUBLE_EQ(kept.bytes(StepKind::experts, 2), plain.bytes(StepKind::experts, 2));
  EXPECT_DOUBLE_EQ(kept.bytes(StepKind::attention, 1), plain.bytes(StepKind::attention, 1));
  EXPECT_LT(kept.bytes(StepKind::attention, 2), 0.75 * plain.bytes(StepKind::attention, 2));
  // A device unpacks them before each product.
  EXPECT_DOUBLE_EQ(on_device.bytes(StepKind::experts, 1),
                   kept.bytes(StepKind::experts, 1) + 4 * elements);
  EXPECT_DOUBLE_EQ(on_device.seconds(StepKind::experts, 1),
                   on_device.bytes(StepKind::experts, 1) / made_machine().bytes_per_s);
}

/// A row is projected to a latent of queries, and not to the queries.
TEST(StepCosts, QueriesHaveALatent) {
  ModelShape shape = tiny_shape();
  shape.num_kv_heads = shape.num_heads;
  shape.latent = {28, 32, 8, 1e-6F};
  shape.ropes = {plain_rope(8, 1e4)};
  const double wanted = shape.hidden * (28.0 + 40 + shape.heads_width());
  EXPECT_DOUBLE_EQ(StepCost(shape).bytes(StepKind::attention, 1), 2 * wanted);
}

/// A configuration says of what it publishes which matrices stay in few bits.
TEST(StepCosts, AConfigurationsWeightsMayStayAsPublished) {
  const TemporaryFolder folder;
  const std::string path = folder.path() / "config.json";
  std::ofstream(path) << R"({"model_type": "qwen3_moe", "vocab_size": 256, "hidden_size": 256,
    "intermediate_size": 512, "moe_intermediate_size": 128, "num_hidden_layers": 2,
    "mlp_only_layers": [0], "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128,
    "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": true,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})";
  const ModelShape shape = described_model(path, KeptWeights::coded).shape;
  const Coding fp8{Code::fp8, 128};
  for (const int layer : {0, 1}) {
    for (const Weight weight : {Weight::qkv, Weight::o, Weight::gate, Weight::down}) {
      EXPECT_EQ(shape.coding(weight, layer), fp8) << name_of(weight);
    }
    EXPECT_FALSE(shape.coding(Weight::router, layer).used());
  }
  EXPECT_TRUE(described_model(path).shape.codings.empty());
}

}  // namespace
}  // namespace atl::testing
