// One rank's experts as 16 ranks see them: experts/ of gpu_bench. Own rows stay where they were
// packed, received ones lie member by member; as many of them as tokens that choose evenly bring.

#include <fmt/format.h>

#include <cstring>
#include <map>

#include "app/plan/expert_rows.hpp"
#include "compute/clock.hpp"
#include "perf/gpu_bench.hpp"
#include "perf/gpu_layer.hpp"

namespace atl::gpu_bench {
namespace {

constexpr int num_members = 16;
constexpr int base_rows = 64;  // rows of input that differ

/// A rank with its share of a preset's experts, and chunks with rows for them.
class ExpertPart {
 public:
  /// Every member has `rows` rows for each of this rank's experts in each chunk, of `chosen` rows
  /// that it sends in all: buffers are as large as theirs.
  ExpertPart(const Bench& bench, const std::string& preset, int num_chunks, int rows, int chosen)
      : config_(one_layer(preset + bench.sizes.suffix)),
        num_local_(config_.shape.num_experts / num_members),
        rows_(rows) {
    // The rank alone: its experts are all there are.
    config_.shape.num_experts = num_local_;
    config_.shape.top_k = 1;
    const Weights weights(config_);
    const int own = rows * num_local_;
    compute::BackendOptions options =
        options_for(config_, chosen, (chosen + page_tokens - 1) / page_tokens, num_chunks);
    options.receive_rows = std::int64_t{num_members - 1} * own;
    backend_ = compute::make_cuda_backend(options, {bench.device, 1, 0});
    load_layer(*backend_, config_, weights);
    for (int i = 0; i < num_chunks; ++i) {
      chunks_.push_back(backend_->make_chunk());
      chunks_.back()->reserve_receive(options.receive_rows);
      fill(*chunks_.back());
      plan_blocks(*chunks_.back());
    }
  }

  const ModelConfig& config() const { return config_; }
  int num_local() const { return num_local_; }
  std::int64_t num_rows() const {
    return static_cast<std::int64_t>(chunks_.size()) * num_members * num_local_ * rows_;
  }

  double seconds(int repetitions) {
    run();  // warms up
    const double begin = now_seconds();
    compute::Event last = 0;
    for (int i = 0; i < repetitions; ++i) last = enqueue();
    backend_->finish(last);
    return (now_seconds() - begin) / repetitions;
  }

  /// Rows that are equal and for one expert have equal results, wherever they lie.
  void check() {
    run();
    const auto bytes = static_cast<std::size_t>(row_bytes());
    std::map<std::pair<int, std::size_t>, std::vector<std::byte>> seen;
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      for (const compute::RowBlock& block : blocks_[c]) {
        const auto in =
            to_host<std::byte>(block.in, static_cast<std::size_t>(block.num_rows) * bytes);
        const auto out =
            to_host<std::byte>(block.out, static_cast<std::size_t>(block.num_rows) * bytes);
        for (std::size_t at = 0; at < in.size(); at += bytes) {
          check_row(in.data() + at, out.data() + at, block.local_expert, seen);
        }
      }
    }
  }

 private:
  std::int64_t row_bytes() const {
    return std::int64_t{config_.shape.hidden} * static_cast<std::int64_t>(size_of(config_.dtype));
  }

  void check_row(const std::byte* in, const std::byte* out, int expert,
                 std::map<std::pair<int, std::size_t>, std::vector<std::byte>>& seen) const {
    const auto bytes = static_cast<std::size_t>(row_bytes());
    std::size_t base = 0;
    while (base < base_rows && std::memcmp(base_.data() + base * bytes, in, bytes) != 0) ++base;
    require(base < base_rows, "a row of an expert's input was written over");
    const std::vector<std::byte> row(out, out + bytes);
    require(std::any_of(row.begin(), row.end(), [](std::byte b) { return b != std::byte{0}; }),
            "a row of expert {}'s results is zero", expert);
    const auto [first, is_new] = seen.try_emplace({expert, base}, row);
    require(is_new || first->second == row, "equal rows of expert {} have other results", expert);
  }

  void fill(compute::Chunk& chunk) {
    const auto own = static_cast<std::size_t>(rows_ * num_local_);
    const auto bytes = static_cast<std::size_t>(row_bytes());
    base_ = random_values(base_rows * std::int64_t{config_.shape.hidden}, 1, config_.dtype);
    const std::size_t most = own * (num_members - 1);
    const auto rows = repeated_on_device(base_, most * bytes);
    compute::cuda::check(
        cudaMemcpy(chunk.dispatch_send, rows.data(), own * bytes, cudaMemcpyDeviceToDevice),
        "cudaMemcpy");
    compute::cuda::check(
        cudaMemcpy(chunk.dispatch_recv, rows.data(), most * bytes, cudaMemcpyDeviceToDevice),
        "cudaMemcpy");
    compute::cuda::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }

  void plan_blocks(const compute::Chunk& chunk) {
    std::vector<PlaceRange> members;
    for (int m = 0; m < num_members; ++m) members.push_back({m * num_local_, num_local_});
    ExpertRows rows(members, 0);
    rows.packed(
        std::vector<std::int32_t>(static_cast<std::size_t>(num_members * num_local_), rows_));
    for (int m = 1; m < num_members; ++m) {
      rows.heard_from(m, std::vector<std::int32_t>(static_cast<std::size_t>(num_local_), rows_));
    }
    std::vector<ExpertBlock> found;
    rows.blocks(found);
    blocks_.emplace_back();
    for (const ExpertBlock& block : found) {
      blocks_.back().push_back(row_block(block, chunk, static_cast<std::size_t>(row_bytes())));
    }
  }

  compute::Event enqueue() {
    compute::Event last = 0;
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      last = backend_->experts(*chunks_[i], 0, blocks_[i]);
    }
    return last;
  }
  void run() { backend_->finish(enqueue()); }

  ModelConfig config_;
  int num_local_;
  int rows_;
  std::vector<std::byte> base_;  // [base_rows, H]
  std::unique_ptr<compute::Backend> backend_;
  std::vector<std::unique_ptr<compute::Chunk>> chunks_;
  std::vector<std::vector<compute::RowBlock>> blocks_;  // of each chunk
};

void experts(benchmark::State& state, const Bench& bench, const std::string& name,
             const std::string& preset, int num_chunks, int rows) {
  const int num_experts = one_layer(preset + bench.sizes.suffix).shape.num_experts;
  ExpertPart part(bench, preset, num_chunks, rows, rows * num_experts);
  part.check();
  double seconds = 0;
  for (auto _ : state) {
    seconds = part.seconds(bench.sizes.repetitions);
    state.SetIterationTime(seconds);
  }
  const ModelShape& s = part.config().shape;
  const double of_expert = 2.0 * s.hidden * s.moe_intermediate;  // elements
  const double flops = 2.0 * static_cast<double>(part.num_rows()) * of_expert;
  const double bytes =
      static_cast<double>(size_of(part.config().dtype)) *
      (part.num_local() * of_expert + 2.0 * static_cast<double>(part.num_rows()) * s.hidden);
  state.counters["TFLOP_per_s"] = flops / seconds / 1e12;
  state.counters["of_best_gemm"] = flops / seconds / bench.gemm_rate;
  tell(state, name, seconds, bench.floor(flops, bytes),
       fmt::format("{} experts, {} rows each in {} chunks, {} own; {:.2f} of best GEMM",
                   part.num_local(), part.num_rows() / part.num_local(), num_chunks,
                   rows * num_chunks, flops / seconds / bench.gemm_rate));
}

}  // namespace

void add_experts(Bench& bench) {
  for (const std::string preset : {"moe-16l", "moe-61l", "moe-4l"}) {
    const ModelShape shape = one_layer(preset + bench.sizes.suffix).shape;
    for (const int chunks : bench.sizes.chunks) {
      const int rows = bench.sizes.tokens * shape.top_k / shape.num_experts / chunks;
      add(bench, fmt::format("experts/{}/ep16/chunks:{}", preset, chunks),
          [&bench, preset, chunks, rows](benchmark::State& state, const std::string& name) {
            experts(state, bench, name, preset, chunks, rows);
          });
    }
    // A step of decode: 16 rows of 64 sequences, one from each member.
    add(bench, fmt::format("experts/{}/ep16/decode", preset),
        [&bench, preset](benchmark::State& state, const std::string& name) {
          experts(state, bench, name, preset, 1, 1);
        });
  }
}

}  // namespace atl::gpu_bench
