#pragma once
// Random tiny models, and one rank that runs them through a backend by a plain loop.

#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "compute/backend.hpp"
#include "tests/oracle_weights.hpp"
#include "tests/random_values.hpp"
#include "tests/reference.hpp"

namespace atl::testing {

/// A small shape with one dense layer and one or more MoE layers; tests change what they need.
inline ModelShape tiny_shape() {
  ModelShape shape;
  shape.hidden = 48;
  shape.num_layers = 3;
  shape.num_heads = 4;
  shape.num_kv_heads = 2;
  shape.head_dim = 16;
  shape.intermediate = 80;
  shape.moe_intermediate = 40;
  shape.num_experts = 5;
  shape.top_k = 2;
  shape.vocab = 50;
  shape.max_positions = 512;
  shape.layer_is_dense = {true, false, false};
  return shape;
}

/// A shape with its name in tests.
struct ModelKind {
  std::string name;
  ModelShape shape;
};

template <class Change>
ModelKind model_kind(const char* name, Change change) {
  ModelKind result{name, tiny_shape()};
  change(result.shape);
  return result;
}

/// Drawn weight by weight, in the order of the table.
inline reference::Model random_by_table(const ModelShape& shape, DType dtype, unsigned seed) {
  using compute::Weight;
  Random random(seed, dtype);
  reference::Model model;
  model.shape = shape;
  compute::for_each_weight(
      shape, compute::whole_model(shape),
      [&](const compute::WeightInfo& info, int expert, int /*local_expert*/) {
        const auto rows = static_cast<int>(info.rows);
        const auto cols = static_cast<int>(info.cols);
        reference::Vector values;
        if (info.use == compute::Use::vector) {
          const bool added = info.id >= Weight::qkv_bias && info.id <= Weight::down_bias;
          values = random.vector(rows, added ? 0 : 1, added ? 0.3 : 0.1);
        } else {
          const double gain = info.id == Weight::embedding ? std::sqrt(cols)
                              : info.id == Weight::router  ? 2
                              : info.id == Weight::qkv     ? 1.5
                                                           : 1;
          for (const reference::Vector& row : random.matrix(rows, cols, gain)) {
            values.insert(values.end(), row.begin(), row.end());
          }
        }
        set_weight(model, info, expert, std::move(values));
      });
  return model;
}

/// Every kind of model that files of version 1 describe; all backends support them.
inline std::vector<ModelKind> model_kinds() {
  return {
      model_kind("gqa_swiglu_top2", [](ModelShape&) {}),
      model_kind("mha_gelu_per_head",
                 [](ModelShape& s) {
                   s.num_kv_heads = 4;
                   s.activation = Activation::gelu_tanh;
                   s.qk_norm = QkNorm::per_head;
                 }),
      model_kind("whole_row_norm_no_renormalisation",
                 [](ModelShape& s) {
                   s.qk_norm = QkNorm::whole_row;
                   s.norm_topk_prob = false;
                 }),
      model_kind("top1_gelu",
                 [](ModelShape& s) {
                   s.top_k = 1;
                   s.norm_topk_prob = false;
                   s.activation = Activation::gelu_tanh;
                 }),
      model_kind("top3_mqa",
                 [](ModelShape& s) {
                   s.top_k = 3;
                   s.num_kv_heads = 1;
                 }),
      model_kind("top4_odd_widths",
                 [](ModelShape& s) {
                   s.top_k = 4;
                   s.hidden = 37;
                   s.moe_intermediate = 21;
                   s.intermediate = 33;
                   s.vocab = 71;
                   s.head_dim = 10;
                 }),
      model_kind("head_dim_32_all_moe",
                 [](ModelShape& s) {
                   s.head_dim = 32;
                   s.layer_is_dense = {false, false, false};
                 }),
      model_kind("head_dim_64_all_dense",
                 [](ModelShape& s) {
                   s.head_dim = 64;
                   s.layer_is_dense = {true, true, true};
                 }),
      model_kind("head_dim_80", [](ModelShape& s) { s.head_dim = 80; }),
      model_kind("head_dim_128_per_head",
                 [](ModelShape& s) {
                   s.head_dim = 128;
                   s.qk_norm = QkNorm::per_head;
                 }),
      model_kind("head_dim_512",
                 [](ModelShape& s) {
                   s.head_dim = 512;
                   s.num_heads = 2;
                 }),
  };
}

inline reference::Mlp random_mlp(const ModelShape& shape, int inner, Random& random) {
  reference::Mlp mlp;
  mlp.up = random.matrix(inner, shape.hidden);
  if (shape.activation == Activation::swiglu) mlp.gate = random.matrix(inner, shape.hidden);
  mlp.down = random.matrix(shape.hidden, inner);
  return mlp;
}

/// Drawn in an order of its own, so that a seed means the same numbers whatever the table's order.
inline reference::Model random_model(const ModelShape& shape, DType dtype, unsigned seed) {
  if (!is_plain(shape)) return random_by_table(shape, dtype, seed);
  Random random(seed, dtype);
  reference::Model model;
  model.shape = shape;
  model.embedding = random.matrix(shape.vocab, shape.hidden, std::sqrt(shape.hidden));
  model.final_norm = random.vector(shape.hidden, 1, 0.1);
  model.lm_head = random.matrix(shape.vocab, shape.hidden);
  const bool whole = shape.qk_norm == QkNorm::whole_row;
  for (int l = 0; l < shape.num_layers; ++l) {
    reference::Layer layer;
    layer.attention_norm = random.vector(shape.hidden, 1, 0.1);
    layer.ffn_norm = random.vector(shape.hidden, 1, 0.1);
    layer.q_norm = random.vector(whole ? shape.q_width() : shape.head_dim, 1, 0.1);
    layer.k_norm = random.vector(whole ? shape.kv_width() : shape.head_dim, 1, 0.1);
    layer.qkv = random.matrix(shape.q_width() + 2 * shape.kv_width(), shape.hidden, 1.5);
    layer.o = random.matrix(shape.hidden, shape.q_width());
    if (shape.is_dense(l)) {
      layer.dense = random_mlp(shape, shape.intermediate, random);
    } else {
      layer.router = random.matrix(shape.num_experts, shape.hidden, 2);
      for (int e = 0; e < shape.num_experts; ++e) {
        layer.experts.push_back(random_mlp(shape, shape.moe_intermediate, random));
      }
    }
    model.layers.push_back(layer);
  }
  return model;
}

/// The whole of tiny_shape() on one rank, with little memory.
inline compute::BackendOptions tiny_options() {
  compute::BackendOptions options;
  options.shape = tiny_shape();
  options.max_chunk_tokens = 8;
  options.num_pages = 4;
  options.part = compute::whole_model(options.shape);
  return options;
}

struct RankOptions {
  DType dtype = DType::float32;
  int num_threads = 1;
  int max_chunk_tokens = 256;
  int num_pages = 32;
  bool reverse_experts = false;  // rows are sent from the last expert to the first
  bool in_parts = false;         // attention and experts part by part, another chunk's in between
  int prompt = std::numeric_limits<int>::max();  // positions of sequences that are of prompts
  std::function<std::unique_ptr<compute::Backend>(const compute::BackendOptions&)> make_backend =
      compute::make_cpu_backend;
};

/// One rank that owns every expert. Sequences get KV pages round-robin, so that those of one
/// sequence are not contiguous.
class SingleRank {
 public:
  SingleRank(const reference::Model& model, const RankOptions& rank)
      : shape_(model.shape), max_pages_((shape_.max_positions + 63) / 64) {
    compute::BackendOptions options;
    options.shape = shape_;
    options.dtype = rank.dtype;
    options.part = compute::whole_model(shape_);
    for (auto& replica : options.part.places.front().replicas) {
      if (rank.reverse_experts) replica.place = shape_.num_experts - 1 - replica.place;
      order_.push_back(replica.place);
    }
    options.num_threads = rank.num_threads;
    options.num_pages = rank.num_pages;
    options.max_chunk_tokens = rank.max_chunk_tokens;
    options.split_experts = rank.in_parts;
    dtype_ = rank.dtype;
    prompt_ = rank.prompt;
    num_pages_ = rank.num_pages;
    backend_ = rank.make_backend(options);
    load(model);
    chunk_ = backend_->make_chunk();
    if (rank.in_parts) make_other_chunk();
    blocks_.reserve(static_cast<std::size_t>(shape_.num_experts));
    tokens_.reserve(static_cast<std::size_t>(rank.max_chunk_tokens));
  }

  compute::Backend& backend() { return *backend_; }
  compute::Chunk& chunk() { return *chunk_; }

  /// Weights of a model of the same shape, in place of those that are there.
  void load(reference::Model model) {
    compute::for_each_weight(shape_, compute::whole_model(shape_),
                             [&](const compute::WeightInfo& info, int expert, int local_expert) {
                               const auto bytes =
                                   encode(weight_values(model, info, expert), dtype_);
                               backend_->load_weight(info.id, info.layer, local_expert,
                                                     {bytes.data(), dtype_, info.rows, info.cols});
                             });
    backend_->finish_loading();
  }

  /// Adds a sequence and returns its number.
  int add_sequence() {
    pages_.emplace_back();
    pages_.back().reserve(static_cast<std::size_t>(max_pages_));
    lengths_.push_back(0);
    return static_cast<int>(pages_.size()) - 1;
  }

  /// Gives a new sequence pages for `length` positions, as if they were in the cache.
  int add_sequence_of(int length) {
    const int sequence = add_sequence();
    const auto at = static_cast<std::size_t>(sequence);
    while (static_cast<int>(pages_[at].size()) * 64 < length) {
      pages_[at].push_back(next_page_++ % num_pages_);
    }
    lengths_[at] = length;
    return sequence;
  }
  std::span<const std::int32_t> pages_of(int sequence) const {
    return pages_[static_cast<std::size_t>(sequence)];
  }

  /// Sets the chunk to the next tokens of some sequences.
  struct Piece {
    int sequence;
    std::span<const std::int32_t> tokens;
  };
  void set_chunk(std::span<const Piece> pieces) {
    tokens_.clear();
    segments_.clear();
    for (const Piece& piece : pieces) {
      const auto at = static_cast<std::size_t>(piece.sequence);
      const int count = static_cast<int>(piece.tokens.size());
      while (static_cast<int>(pages_[at].size()) * 64 < lengths_[at] + count) {
        pages_[at].push_back(next_page_++ % num_pages_);
      }
      segments_.push_back({static_cast<std::int32_t>(tokens_.size()), count, lengths_[at],
                           pages_[at].data(), prompt_});
      tokens_.insert(tokens_.end(), piece.tokens.begin(), piece.tokens.end());
      lengths_[at] += count;
    }
    chunk_->tokens = tokens_;
    chunk_->segments = segments_;
  }

  /// What takes the router's place in a layer from now on, and where choices are saved after it;
  /// either may be empty.
  std::function<compute::ForcedChoices(int layer)> forced;
  std::function<void(int layer)> routed;

  /// Runs the chunk through all layers. Allocates nothing.
  void run_layers() {
    backend_->embed(*chunk_);
    for (int l = 0; l < shape_.num_layers; ++l) {
      attention(l);
      if (shape_.is_dense(l)) {
        backend_->mlp(*chunk_, l);
        continue;
      }
      if (forced) chunk_->forced = forced(l);
      finish(backend_->route(*chunk_, l));
      make_blocks();
      if (shape_.has_shared_expert()) backend_->shared_expert(*chunk_, l);
      experts(l);
      finish(backend_->merge(*chunk_, l));
      if (routed) routed(l);
    }
  }

  void finish(compute::Event event) {
    while (!backend_->wait(event, 100000)) {
    }
  }

  /// Logits [T, vocab] of one new sequence, run in pieces of the given size.
  std::vector<float> logits(const std::vector<std::int32_t>& tokens, int piece) {
    const int sequence = add_sequence();
    std::vector<float> result(tokens.size() * static_cast<std::size_t>(shape_.vocab));
    for (std::size_t first = 0; first < tokens.size();) {
      const std::size_t count = std::min<std::size_t>(piece, tokens.size() - first);
      const Piece next{sequence, std::span(tokens).subspan(first, count)};
      set_chunk({&next, 1});
      run_layers();
      std::vector<std::int32_t> rows(count);
      std::iota(rows.begin(), rows.end(), 0);
      finish(backend_->logits(*chunk_, rows, result.data() + first * shape_.vocab));
      first += count;
    }
    return result;
  }

  /// Log-probabilities of every token of the vocabulary, from logits in float64.
  reference::Matrix log_probs(const std::vector<std::int32_t>& tokens, int piece) {
    const std::vector<float> flat = logits(tokens, piece);
    reference::Matrix result;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const auto begin = flat.begin() + static_cast<std::ptrdiff_t>(t) * shape_.vocab;
      reference::Vector row(begin, begin + shape_.vocab);
      const double top = *std::max_element(row.begin(), row.end());
      double sum = 0;
      for (const double value : row) sum += std::exp(value - top);
      for (double& value : row) value -= top + std::log(sum);
      result.push_back(row);
    }
    return result;
  }

 private:
  void attention(int layer) {
    using compute::AttentionPart;
    if (!other_) {
      backend_->attention(*chunk_, layer);
      return;
    }
    for (const auto part : {AttentionPart::project, AttentionPart::attend, AttentionPart::output}) {
      backend_->attention(*chunk_, layer, part);
      backend_->attention(*other_, layer);
    }
  }
  void experts(int layer) {
    using compute::ExpertPart;
    if (!other_) {
      backend_->experts(*chunk_, layer, blocks_);
      return;
    }
    other_block_ = {0, 2, other_->dispatch_send, other_->combine_recv};
    backend_->experts(*chunk_, layer, blocks_, ExpertPart::up);
    backend_->experts(*other_, layer, {&other_block_, 1}, ExpertPart::up);
    backend_->experts(*chunk_, layer, blocks_, ExpertPart::down);
    backend_->experts(*other_, layer, {&other_block_, 1});
  }
  /// Two tokens of a sequence of its own.
  void make_other_chunk() {
    static constexpr std::int32_t tokens[] = {3, 1};
    other_ = backend_->make_chunk();
    other_->tokens = tokens;
    other_page_ = num_pages_ - 1;
    other_segment_ = {0, 2, 0, &other_page_};
    other_->segments = {&other_segment_, 1};
    finish(backend_->embed(*other_));
  }

  /// Experts read dispatch_send and write combine_recv in place, as if a rank's own rows.
  void make_blocks() {
    blocks_.clear();
    const auto row_bytes = static_cast<std::int64_t>(size_of(dtype_)) * shape_.hidden;
    for (int e = 0; e < shape_.num_experts; ++e) {
      const auto place = static_cast<std::size_t>(order_[static_cast<std::size_t>(e)]);
      const auto& counts = chunk_->packed_counts;
      const std::int64_t offset = std::accumulate(
          counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(place), std::int64_t{0});
      blocks_.push_back({e, counts[place],
                         static_cast<char*>(chunk_->dispatch_send) + offset * row_bytes,
                         static_cast<char*>(chunk_->combine_recv) + offset * row_bytes});
    }
  }

  std::unique_ptr<compute::Chunk> other_;  // where operations run in parts
  std::int32_t other_page_ = 0;
  compute::Segment other_segment_;
  compute::RowBlock other_block_;
  ModelShape shape_;
  int max_pages_;
  DType dtype_ = DType::float32;
  int prompt_ = 0;
  int num_pages_ = 0;
  int next_page_ = 0;
  std::vector<std::int32_t> order_;
  std::unique_ptr<compute::Backend> backend_;
  std::unique_ptr<compute::Chunk> chunk_;
  std::vector<std::vector<std::int32_t>> pages_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::int32_t> tokens_;
  std::vector<compute::Segment> segments_;
  std::vector<compute::RowBlock> blocks_;
};

inline double mean_difference(const reference::Matrix& a, const reference::Matrix& b) {
  double sum = 0;
  double count = 0;
  for (std::size_t r = 0; r < a.size(); ++r) {
    for (std::size_t c = 0; c < a[r].size(); ++c, ++count) sum += std::abs(a[r][c] - b[r][c]);
  }
  return sum / count;
}

inline double largest_difference(const reference::Matrix& a, const reference::Matrix& b) {
  double largest = 0;
  for (std::size_t r = 0; r < a.size(); ++r) {
    for (std::size_t c = 0; c < a[r].size(); ++c) {
      const double difference = std::abs(a[r][c] - b[r][c]);
      largest = difference <= largest ? largest : difference;  // NaN counts as larger
    }
  }
  return largest;
}

}  // namespace atl::testing
