#pragma once
// A stack of MoE layers whose routing follows a given table, for measurements.
//
// Nothing of the program's path is bypassed: a token's id names the experts it goes to. The first
// `num_experts` elements of a row of the embedding are a code with top_k falling values;
// attention and experts have zero rows there, so that the residual stream carries the code through
// all layers unchanged, and the router of a layer reads just these elements, in that layer's order.

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "app/model/init.hpp"
#include "app/plan/placement.hpp"
#include "compute/backend.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/npy.hpp"
#include "io/requests.hpp"
#include "perf/layers_options.hpp"

namespace atl::perf {

class LayersModel {
 public:
  /// `layout` and contiguous shares say which experts a hot node has.
  LayersModel(const LayersOptions& options, const Layout& layout) : options_(options) {
    const int experts = options.experts;
    require(options.top_k >= 1 && options.top_k <= most_top_k && options.top_k <= experts,
            "cannot choose {} of {} experts here (1 to {}); change --top-k or --experts",
            options.top_k, experts, most_top_k);
    require(options.hidden >= 2 * experts && options.hidden % head_dim == 0,
            "a hidden size of {} cannot carry the codes of {} experts (twice as many elements and "
            "a multiple of {} are needed)",
            options.hidden, experts, head_dim);
    shape_.hidden = options.hidden;
    shape_.num_layers = options.layers;
    shape_.num_heads = options.hidden / head_dim;
    shape_.num_kv_heads = shape_.num_heads;
    shape_.head_dim = head_dim;
    shape_.intermediate = options.intermediate;
    shape_.moe_intermediate = options.intermediate;
    shape_.num_experts = experts;
    shape_.top_k = options.top_k;
    shape_.vocab = experts * experts;
    shape_.max_positions = options.sequence + 1;
    shape_.activation = Activation::gelu_tanh;
    shape_.layer_is_dense.assign(static_cast<std::size_t>(options.layers), false);
    make_loads(layout);
    make_codes();
    if (!options.routing.empty()) read_trace();
  }

  const ModelShape& shape() const { return shape_; }

  /// [experts]: share of first choices that go to each expert of a layer.
  std::vector<double> load_of_layer(int layer) const {
    std::vector<double> loads(code_loads_.size());
    for (std::size_t code = 0; code < loads.size(); ++code) {
      loads[static_cast<std::size_t>(expert_of(layer, static_cast<int>(code)))] = code_loads_[code];
    }
    return loads;
  }

  /// Prompts whose tokens follow the loads, the same on every rank.
  std::vector<io::Request> requests(int num_ranks) const {
    std::mt19937 random(static_cast<unsigned>(options_.seed));
    std::discrete_distribution<int> choose(code_loads_.begin(), code_loads_.end());
    const int count = std::max(1, options_.tokens / options_.sequence) * num_ranks;
    std::vector<io::Request> all(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].id = std::to_string(i);
      all[i].max_tokens = 1;
      for (int t = 0; t < options_.sequence; ++t) {
        const int first = choose(random);
        int second = first;
        for (int tries = 0; second == first && tries < 1000; ++tries) second = choose(random);
        if (second == first) second = (first + 1) % shape_.num_experts;
        all[i].tokens.push_back(first * shape_.num_experts + second);
      }
      if (!traced()) continue;
      for (int t = 0; t < options_.sequence;
           ++t) {  // token after token of the record, again and again
        const auto at =
            i * static_cast<std::size_t>(options_.sequence) + static_cast<std::size_t>(t);
        all[i].tokens[static_cast<std::size_t>(t)] =
            static_cast<std::int32_t>(at % static_cast<std::size_t>(shape_.vocab));
      }
    }
    return all;
  }

  /// Adds to counts[expert] the rows that `tokens` send there in `layer`.
  void count_rows(std::span<const std::int32_t> tokens, int layer,
                  std::span<std::int32_t> counts) const {
    std::vector<std::int32_t> experts(static_cast<std::size_t>(shape_.top_k));
    for (const std::int32_t token : tokens) {
      experts_of(token, layer, experts);
      for (const std::int32_t expert : experts) ++counts[static_cast<std::size_t>(expert)];
    }
  }

  /// experts [top_k] = those that a token goes to in a layer, the first choice first.
  void experts_of(std::int32_t token, int layer, std::span<std::int32_t> experts) const {
    if (traced()) {
      const auto at =
          (static_cast<std::size_t>(token) * static_cast<std::size_t>(shape_.num_layers) +
           static_cast<std::size_t>(layer)) *
          experts.size();
      std::copy_n(trace_.begin() + static_cast<std::ptrdiff_t>(at), experts.size(),
                  experts.begin());
      return;
    }
    const auto codes = codes_of(token);
    for (std::size_t j = 0; j < codes.size(); ++j) experts[j] = expert_of(layer, codes[j]);
  }
  /// Whether a recorded routing decides, which backends must then be given.
  bool traced() const { return !trace_.empty(); }

  /// [top_k]: codes of the experts that a token goes to, the first choice first.
  std::span<const std::int32_t> codes_of(std::int32_t token) const {
    const auto top_k = static_cast<std::size_t>(shape_.top_k);
    return std::span(codes_).subspan(static_cast<std::size_t>(token) * top_k, top_k);
  }

  /// The expert that a code means in a layer.
  int expert_of(int layer, int code) const {
    return expert_of_code_[static_cast<std::size_t>(layer)][static_cast<std::size_t>(code)];
  }
  /// [layers][experts]: the same of all.
  const std::vector<std::vector<int>>& expert_of_code() const { return expert_of_code_; }

  /// Loads a rank's part: norms are ones, matrices random numbers but for the codes.
  void load(compute::Backend& backend, const compute::Part& part) const {
    const auto load_one = [&](const compute::WeightInfo& info, int expert, int local_expert) {
      std::vector<std::uint16_t> m(static_cast<std::size_t>(info.num_elements()), one);
      if (info.use == compute::Use::matrix) {
        const double deviation = info.id == compute::Weight::embedding
                                     ? 1
                                     : 1 / std::sqrt(static_cast<double>(info.cols));
        fill_random(0, fmt::format("{} {} {}", info.layer, name_of(info.id), expert), 0, deviation,
                    DType::bfloat16, std::as_writable_bytes(std::span(m)));
        write_codes(m, info);
      }
      backend.load_weight(info.id, info.layer, local_expert,
                          {m.data(), DType::bfloat16, info.rows, info.cols});
    };
    compute::for_each_weight(shape_, part, load_one);
    backend.finish_loading();
  }

 private:
  static constexpr int head_dim = 64;
  static constexpr std::uint16_t one = 0x3f80;  // 1 in BF16

  /// Choices [tokens, layers, k] of a real router. With fewer experts here they are folded onto
  /// those there are; of two that fall together the second becomes the next that is free.
  void read_trace() {
    const io::NpyIntegers record(options_.routing);
    require(record.shape().size() == 3 && record.shape()[2] >= shape_.top_k,
            "{} has no choices of {} experts for tokens and layers", options_.routing,
            shape_.top_k);
    const auto layers = static_cast<std::size_t>(record.shape()[1]);
    const auto columns = static_cast<std::size_t>(record.shape()[2]);
    shape_.vocab = static_cast<int>(std::min<std::int64_t>(record.shape()[0], 16384));
    std::vector<std::int32_t> values(static_cast<std::size_t>(shape_.vocab) * layers * columns);
    record.read(0, values);
    for (std::size_t token = 0; token < static_cast<std::size_t>(shape_.vocab); ++token) {
      for (std::size_t layer = 0; layer < static_cast<std::size_t>(shape_.num_layers); ++layer) {
        std::vector<std::int32_t> experts;
        for (std::size_t j = 0; j < static_cast<std::size_t>(shape_.top_k); ++j) {
          const auto expert = values[(token * layers + layer % layers) * columns + j];
          add_code(static_cast<std::int32_t>(expert % shape_.num_experts), experts);
        }
        trace_.insert(trace_.end(), experts.begin(), experts.end());
      }
    }
  }

  /// Of a token's j-th expert in its code.
  static std::uint16_t value_of_choice(int j) {
    return compute::bfloat16_of(j == 0 ? 8.0F : 6.0F * std::pow(0.85F, static_cast<float>(j - 1)));
  }

  /// A token's number says its first two experts; it has others, if any, by the same loads.
  void make_codes() {
    const int experts = shape_.num_experts;
    std::discrete_distribution<int> choose(code_loads_.begin(), code_loads_.end());
    std::mt19937 random(static_cast<unsigned>(options_.seed) + 200U);
    for (int token = 0; token < shape_.vocab; ++token) {
      std::vector<std::int32_t> codes = {token / experts};
      // Of two equal ones, which no request has, the second is another.
      if (shape_.top_k > 1) add_code(token % experts, codes);
      while (static_cast<int>(codes.size()) < shape_.top_k) {
        int code = choose(random);
        for (int tries = 0; contains(codes, code) && tries < 1000; ++tries) code = choose(random);
        add_code(code, codes);
      }
      codes_.insert(codes_.end(), codes.begin(), codes.end());
    }
  }
  static bool contains(const std::vector<std::int32_t>& codes, std::int32_t code) {
    return std::find(codes.begin(), codes.end(), code) != codes.end();
  }
  /// The code, or the next that is not there yet.
  void add_code(std::int32_t code, std::vector<std::int32_t>& codes) const {
    while (contains(codes, code)) code = (code + 1) % shape_.num_experts;
    codes.push_back(code);
  }

  /// Loads of the codes, and which expert each code means in which layer.
  void make_loads(const Layout& layout) {
    const auto experts = static_cast<std::size_t>(shape_.num_experts);
    std::mt19937 random(static_cast<unsigned>(options_.seed) + 100U);
    code_loads_.assign(experts, 1.0);
    const Placement even = even_placement(shape_, layout);
    const auto node_of = [&](std::size_t expert) {
      return layout.node_of(even.kinds.front().ranks_of_expert()[expert].front());
    };
    if (options_.skew == "log-normal") {
      std::normal_distribution<double> normal(0, options_.sigma);
      for (double& load : code_loads_) load = std::exp(normal(random));
    } else if (options_.skew != "uniform") {
      const bool by_node = options_.skew == "hot-node";
      require(!by_node || layout.num_nodes() > 1,
              "a hot node needs at least two nodes (this run has one); use another --skew");
      const auto hot = [&](std::size_t e) { return by_node ? node_of(e) == 0 : e == 0; };
      std::size_t num_hot = 0;
      for (std::size_t e = 0; e < experts; ++e) num_hot += hot(e) ? 1 : 0;
      for (std::size_t e = 0; e < experts; ++e) {
        code_loads_[e] = hot(e) ? options_.hot_share / static_cast<double>(num_hot)
                                : (1 - options_.hot_share) / static_cast<double>(experts - num_hot);
      }
    }
    for (int layer = 0; layer < shape_.num_layers; ++layer) {
      std::vector<int> order(experts);
      std::iota(order.begin(), order.end(), 0);
      if (options_.skew == "log-normal") std::shuffle(order.begin(), order.end(), random);
      if (options_.skew == "rotating") {
        std::rotate(order.begin(), order.begin() + layer % shape_.num_experts, order.end());
      }
      expert_of_code_.push_back(order);
    }
    const double sum = std::accumulate(code_loads_.begin(), code_loads_.end(), 0.0);
    for (double& load : code_loads_) load /= sum;
  }

  /// What of a matrix reads or writes the codes, or must leave them alone.
  void write_codes(std::vector<std::uint16_t>& m, const compute::WeightInfo& info) const {
    const auto experts = static_cast<std::size_t>(shape_.num_experts);
    const auto cols = static_cast<std::size_t>(info.cols);
    switch (info.id) {
      case compute::Weight::embedding:
        for (std::size_t token = 0; token < experts * experts && !traced(); ++token) {
          auto* row = m.data() + token * cols;
          std::fill_n(row, experts, std::uint16_t{0});
          const auto codes = codes_of(static_cast<std::int32_t>(token));
          for (std::size_t j = 0; j < codes.size(); ++j) {
            row[static_cast<std::size_t>(codes[j])] = value_of_choice(static_cast<int>(j));
          }
        }
        return;
      case compute::Weight::o:
      case compute::Weight::down:
        std::fill_n(m.begin(), experts * cols, std::uint16_t{0});
        return;
      case compute::Weight::router:
        std::fill(m.begin(), m.end(), std::uint16_t{0});
        for (int code = 0; code < shape_.num_experts; ++code) {
          m[static_cast<std::size_t>(expert_of(info.layer, code) * shape_.hidden + code)] = one;
        }
        return;
      default:
        return;
    }
  }

  LayersOptions options_;
  ModelShape shape_;
  std::vector<double> code_loads_;                // [experts], sums to 1
  std::vector<std::vector<int>> expert_of_code_;  // [layers][experts]
  std::vector<std::int32_t> codes_;               // [experts * experts, top_k]
  std::vector<std::int32_t> trace_;               // [vocab, layers, top_k]
};

}  // namespace atl::perf
