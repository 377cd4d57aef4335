#include "app/plan/step_costs.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "app/run/machine_file.hpp"
#include "compute/error.hpp"

namespace atl {
namespace {

/// A machine file whose arithmetic has these members beside its rates: 1e11 operations and 1e10
/// bytes per second.
Machine machine_with(const std::string& members, const std::string& link = "") {
  return parse_machine(
      fmt::format(R"({{"format": "atoll-machine", "format_version": 1, "backend": "cpu",
  "nodes": {{"count": 1, "ranks": 2}},
  "arithmetic": {{"basis": "measured", "source": "a test", "peak_flops_per_s": 1e11{}}},
  "memory": {{"bytes": 1e9, "bytes_per_s": 1e10}},
  "inside_node": {{"node_bytes_per_s": 1e9, "latency_s": 1e-6{}}},
  "host": {{"launch_s": 0, "poll_s": 0, "message_s": 0, "agree_s": 0}}}})",
                  members, link),
      "a machine");
}

/// Eight heads of 64, 16 experts.
ModelShape shape() {
  ModelShape shape;
  shape.hidden = 512;
  shape.num_layers = 1;
  shape.layer_is_dense = {false};
  shape.num_heads = shape.num_kv_heads = 8;
  shape.head_dim = 64;
  shape.moe_intermediate = 1024;
  shape.num_experts = 4;
  shape.top_k = 2;
  shape.vocab = 256;
  return shape;
}

double seconds(const Machine& machine, StepKind kind, const StepWork& work) {
  const StepCosts costs(machine, shape(), DType::bfloat16, compute::whole_model(shape()),
                        compute::OutputCut::columns);
  return costs.seconds(kind, work);
}

double attention(const Machine& machine, std::int64_t rows, std::int64_t context) {
  const std::vector<LoadSegment> segments = {{rows, context, 0}};
  StepWork work;
  work.layer = 0;
  work.own_rows = work.all_rows = rows;
  work.segments = segments;
  return seconds(machine, StepKind::attend, work);
}

constexpr const char* attention_ladders = R"(, "attention": [
  {"tokens": 1, "heads": 8, "kv_heads": 8, "head_dim": 64, "contexts": [16, 1024],
   "seconds": [1e-5, 4e-4]},
  {"tokens": 64, "heads": 8, "kv_heads": 8, "head_dim": 64, "contexts": [0, 1024],
   "seconds": [1e-4, 4e-3]}])";

TEST(StepCosts, AttentionTakesWhatWasMeasured) {
  const Machine machine = machine_with(attention_ladders);
  EXPECT_NEAR(attention(machine, 64, 0), 1e-4, 1e-12);
  EXPECT_NEAR(attention(machine, 64, 1024), 4e-3, 1e-12);
  EXPECT_NEAR(attention(machine, 1, 1024), 4e-4, 1e-12);
  // Between and beyond: over its bound, as beside.
  const Machine plain = machine_with("");
  const auto over = [&](std::int64_t rows, std::int64_t context) {
    return attention(machine, rows, context) / attention(plain, rows, context);
  };
  EXPECT_GT(over(64, 200), std::min(over(64, 0), over(64, 1024)));
  EXPECT_LT(over(64, 200), std::max(over(64, 0), over(64, 1024)));
  EXPECT_NEAR(over(64, 8000), over(64, 1024), 1e-9);
  EXPECT_NEAR(over(512, 1024), over(64, 1024), 1e-9);
  EXPECT_GT(over(8, 1024), std::min(over(1, 1024), over(64, 1024)));
  EXPECT_LT(over(8, 1024), std::max(over(1, 1024), over(64, 1024)));
}

TEST(StepCosts, UnevenExpertsTakeLonger) {
  const Machine plain = machine_with("");
  const Machine measured =
      machine_with(R"(, "experts": {"busiest_over_mean": [1, 2], "over_products": [1.1, 1.5]})");
  const auto factor = [&](const std::vector<std::int64_t>& rows) {
    StepWork work;
    work.layer = 0;
    work.expert_rows = rows;
    return seconds(measured, StepKind::experts, work) / seconds(plain, StepKind::experts, work);
  };
  EXPECT_NEAR(factor({8, 8, 8, 8}), 1.1, 1e-9);
  EXPECT_NEAR(factor({4, 12, 8, 8}), 1.3, 1e-9);
  EXPECT_NEAR(factor({32, 0, 0, 0}), 1.5, 1e-9);
  StepWork none;
  none.layer = 0;
  EXPECT_EQ(seconds(measured, StepKind::experts, none), 0);
}

TEST(StepCosts, FiguresSayWhereTheyAreFrom) {
  const Machine machine =
      machine_with(attention_ladders, R"(, "arithmetic_s_per_byte": 2e-10, "source": "another")");
  EXPECT_EQ(machine.inside.arithmetic_s_per_byte, 2e-10);
  int measured = 0, stated = 0;
  for (const MachineFigure& figure : machine.figures) {
    if (figure.name.starts_with("arithmetic attention of 64")) {
      measured += figure.basis == Basis::measured && figure.source == "a test" ? 1 : 0;
    }
    if (figure.name == "inside_node arithmetic_s_per_byte") {
      stated += figure.basis == Basis::stated && figure.source == "another" ? 1 : 0;
    }
  }
  EXPECT_EQ(measured, 2);
  EXPECT_EQ(stated, 1);
}

TEST(StepCosts, LaddersThatAreNoneAreRefused) {
  const auto refusal = [](const std::string& members) -> std::string {
    try {
      machine_with(members);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const auto of_attention = [&](const std::string& rest) {
    return refusal(R"(, "attention": [{"tokens": 1, "heads": 8, "kv_heads": 8, "head_dim": 64, )" +
                   rest + "}]");
  };
  const char* takes = "\"attention\" takes tokens";
  EXPECT_NE(of_attention(R"("contexts": [0])").find(takes), std::string::npos);
  EXPECT_NE(of_attention(R"("contexts": [0, 0], "seconds": [1, 2])").find(takes),
            std::string::npos);
  EXPECT_NE(of_attention(R"("contexts": [0, 1], "seconds": [1, 0])").find(takes),
            std::string::npos);
  EXPECT_NE(of_attention(R"("contexts": [0, 1], "seconds": [1, "2"])").find(takes),
            std::string::npos);
  EXPECT_NE(refusal(R"(, "attention": [{"contexts": [0], "seconds": [1]}])").find("\"tokens\""),
            std::string::npos);
  EXPECT_NE(refusal(R"(, "attention": [3])").find(takes), std::string::npos);
  EXPECT_NE(refusal(R"(, "experts": {"busiest_over_mean": [1], "over_products": []})")
                .find("\"experts\" takes"),
            std::string::npos);
  EXPECT_EQ(refusal(attention_ladders), "");
}

}  // namespace
}  // namespace atl
