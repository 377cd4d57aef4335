#pragma once
// One MoE layer of a preset, held whole by one rank: what the GPU benchmarks run. All weights are
// windows into one random buffer, each at its own place, so that gigabytes of them are made at
// once.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app/model/model_config.hpp"
#include "app/plan/expert_rows.hpp"
#include "app/plan/placement.hpp"
#include "compute/backend.hpp"
#include "compute/error.hpp"
#include "perf/gpu_ceilings.hpp"

namespace atl::gpu_bench {

inline constexpr int page_tokens = 64;
inline constexpr int vocab = 256;  ///< the head is no part of these measurements

/// The preset's shape with one layer, an MoE.
inline ModelConfig one_layer(const std::string& name) {
  ModelConfig config = preset(name);
  config.shape.num_layers = 1;
  config.shape.layer_is_dense = {false};
  config.shape.vocab = vocab;
  return config;
}

/// Random numbers, of deviation 1/sqrt(hidden), from which matrices are cut.
class Weights {
 public:
  explicit Weights(const ModelConfig& config) : dtype_(config.dtype) {
    const ModelShape& s = config.shape;
    std::int64_t largest = 0;
    for (const compute::WeightInfo& info : compute::weights_of(s)) {
      largest = std::max(largest, info.num_elements());
    }
    bytes_.resize(static_cast<std::size_t>(largest + window * (2 * s.num_experts + 8)) *
                  size_of(dtype_));
    fill_normal(0, 1.0 / std::sqrt(static_cast<double>(s.hidden)), dtype_, bytes_);
  }

  /// The matrix that begins at window `place`.
  HostTensor matrix(int place, std::int64_t rows, std::int64_t cols) const {
    const std::size_t first = static_cast<std::size_t>(place * window) * size_of(dtype_);
    require(first + static_cast<std::size_t>(rows * cols) * size_of(dtype_) <= bytes_.size(),
            "a matrix [{}, {}] does not fit into the random weights", rows, cols);
    return {bytes_.data() + first, dtype_, rows, cols};
  }

 private:
  static constexpr std::int64_t window = 64;  // elements; keeps rows aligned
  DType dtype_;
  std::vector<std::byte> bytes_;
};

/// Gives a backend the weights of the layer.
inline void load_layer(compute::Backend& backend, const ModelConfig& config,
                       const Weights& weights) {
  const ModelShape& s = config.shape;
  require(s.activation == Activation::gelu_tanh && s.qk_norm == QkNorm::none,
          "the GPU benchmarks know presets with GELU and without norms of q and k");
  const std::vector<float> ones(static_cast<std::size_t>(s.hidden), 1.0F);
  int place = 0;
  const auto load = [&](const compute::WeightInfo& info, int, int local_expert) {
    backend.load_weight(info.id, info.layer, local_expert,
                        info.use == compute::Use::vector
                            ? HostTensor{ones.data(), DType::float32, info.rows, info.cols}
                            : weights.matrix(place++, info.rows, info.cols));
  };
  compute::for_each_weight(s, compute::whole_model(s), load);
  backend.finish_loading();
}

inline compute::BackendOptions options_for(const ModelConfig& config, int max_tokens,
                                           std::int64_t num_pages, int num_chunks) {
  compute::BackendOptions options;
  options.shape = config.shape;
  options.dtype = config.dtype;
  options.part = compute::whole_model(config.shape);
  options.page_tokens = page_tokens;
  options.num_pages = num_pages;
  options.max_chunk_tokens = max_tokens;
  options.num_chunks = num_chunks;
  return options;
}

/// A chunk with its own tokens, segments and pages, on its way through the layer.
class Passage {
 public:
  explicit Passage(compute::Backend& backend, const ModelConfig& config)
      : backend_(backend), config_(config), chunk_(backend.make_chunk()) {}

  /// Sequences [first, first + count) with `rows` tokens each, from position `position` on; each
  /// has pages for `capacity` tokens. Token ids depend on sequence and position alone.
  void fill(int first, int count, int rows, int position, int capacity) {
    const int pages_each = (capacity + page_tokens - 1) / page_tokens;
    tokens_.clear();
    segments_.clear();
    pages_.assign(static_cast<std::size_t>(count), {});
    for (int i = 0; i < count; ++i) {
      auto& pages = pages_[static_cast<std::size_t>(i)];
      pages.resize(static_cast<std::size_t>(pages_each));
      std::iota(pages.begin(), pages.end(), (first + i) * pages_each);
      segments_.push_back({i * rows, rows, position, pages.data()});
      for (int t = 0; t < rows; ++t) {
        const auto mixed =
            static_cast<std::uint32_t>((first + i) * 7919 + position + t) * 2654435761U;
        tokens_.push_back(static_cast<std::int32_t>(mixed >> 24U));
      }
    }
    chunk_->tokens = tokens_;
    chunk_->segments = segments_;
  }

  int num_tokens() const { return static_cast<int>(tokens_.size()); }
  /// Every expert is this rank's own, so that the sending order is that of the experts.
  std::span<const std::int32_t> expert_counts() const { return chunk_->packed_counts; }

  compute::Event embed() { return backend_.embed(*chunk_); }
  compute::Event attention() { return backend_.attention(*chunk_, 0); }
  compute::Event route() { return backend_.route(*chunk_, 0); }
  /// After route has completed: all experts are this rank's own, rows stay where they were packed.
  compute::Event experts() {
    const std::size_t row_bytes =
        static_cast<std::size_t>(config_.shape.hidden) * size_of(config_.dtype);
    rows_known_.packed(chunk_->packed_counts);
    rows_known_.blocks(expert_blocks_);
    blocks_.clear();
    for (const ExpertBlock& block : expert_blocks_) {
      blocks_.push_back(row_block(block, *chunk_, row_bytes));
    }
    return backend_.experts(*chunk_, 0, blocks_);
  }
  compute::Event merge() { return backend_.merge(*chunk_, 0); }

  /// The whole layer; returns the events of attention, route, experts and merge.
  std::vector<compute::Event> layer() {
    embed();
    std::vector<compute::Event> events{attention(), route()};
    backend_.finish(events.back());
    events.push_back(experts());
    events.push_back(merge());
    return events;
  }

  /// Logits of the first `rows` rows, waited for.
  std::vector<float> logits(int rows) {
    rows_.resize(static_cast<std::size_t>(rows));
    std::iota(rows_.begin(), rows_.end(), 0);
    std::vector<float> values(static_cast<std::size_t>(rows) * vocab);
    backend_.finish(backend_.logits(*chunk_, rows_, values.data()));
    return values;
  }

 private:
  compute::Backend& backend_;
  ModelConfig config_;
  std::unique_ptr<compute::Chunk> chunk_;
  std::vector<std::int32_t> tokens_, rows_;
  std::vector<compute::Segment> segments_;
  std::vector<std::vector<std::int32_t>> pages_;
  const LayerPlacement placement_ = even_placement(config_.shape, one_node(1)).of(0);
  ExpertRows rows_known_{places_of_members(placement_, {0}), 0};
  std::vector<ExpertBlock> expert_blocks_;
  std::vector<compute::RowBlock> blocks_;
};

inline double mean_difference(std::span<const float> a, std::span<const float> b) {
  require(a.size() == b.size(), "{} values cannot be compared with {}", a.size(), b.size());
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::abs(double{a[i]} - double{b[i]});
  return sum / static_cast<double>(a.size());
}

}  // namespace atl::gpu_bench
