#pragma once
// Attention of new tokens alone (without its projections), against plain reading of as many bytes
// as its keys and values have, by the same number of threads in turn with it.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "compute/aligned_buffer.hpp"
#include "compute/backend.hpp"
#include "compute/error.hpp"
#include "tests/tiny_model.hpp"

namespace atl::perf {

struct DecodeShape {
  int heads = 16;
  int kv_heads = 4;
  int head_dim = 64;
  int batch = 1;
  int context = 256;  ///< tokens of each sequence in the cache
  int threads = 1;
};

/// A backend of one layer whose q are the normed rows of the embedding and whose output is added to
/// them as it is, with enough sequences in its cache that every step finds its own in memory.
class DecodeAttention {
 public:
  /// Fills the cache, takes one step and throws Error where its result is not the oracle's.
  DecodeAttention(const DecodeShape& shape, std::int64_t more_than_caches)
      : shape_(shape), random_(11, DType::bfloat16) {
    copies_ = static_cast<int>(1 + more_than_caches / bytes());
    model_.hidden = shape.heads * shape.head_dim;
    model_.num_layers = 1;
    model_.layer_is_dense = {true};
    model_.num_heads = shape.heads;
    model_.num_kv_heads = shape.kv_heads;
    model_.head_dim = shape.head_dim;
    model_.intermediate = 16;
    model_.num_experts = model_.top_k = 1;
    model_.vocab = shape.batch;
    model_.max_positions = shape.context + 1;
    compute::BackendOptions options;
    options.shape = model_;
    options.part = compute::whole_model(model_);
    options.num_threads = shape.threads;
    options.num_pages = std::int64_t{copies_} * shape.batch * pages_each();
    options.max_chunk_tokens = shape.batch;
    omp_set_num_threads(shape.threads);
    backend_ = compute::make_cpu_backend(options);
    load();
    fill();
    words_ = compute::AlignedBuffer(static_cast<std::size_t>(copies_ * bytes()));
    std::memset(words_.data(), 1, static_cast<std::size_t>(words_.bytes()));
    check();
  }

  /// Of keys and values that a step reads.
  std::int64_t bytes() const {
    return std::int64_t{4} * shape_.batch * shape_.context * shape_.kv_heads * shape_.head_dim;
  }

  /// One new token of the next `batch` sequences.
  void step() {
    choose(next_);
    next_ = (next_ + 1) % copies_;
    backend_->finish(backend_->attention(*chunk_, 0, compute::AttentionPart::attend));
  }

  /// Reads the bytes of a step where they lie one after the other.
  void read() {
    omp_set_num_threads(shape_.threads);
    const std::int64_t count = bytes() / 8;
    const auto* words = words_.as<std::uint64_t>() + read_next_ * count;
    read_next_ = (read_next_ + 1) % copies_;
    std::uint64_t sum = 0;
#pragma omp parallel for num_threads(shape_.threads) schedule(static) reduction(+ : sum)
    for (std::int64_t i = 0; i < count; ++i) sum += words[i];
    constexpr std::uint64_t ones = 0x0101010101010101ULL;
    require(sum == ones * static_cast<std::uint64_t>(count), "read {} instead of ones", sum);
  }

 private:
  int pages_each() const {
    return shape_.context / 64 + 1;
  }

  void load() {
    const int width = model_.q_width();
    embedding_ = random_.matrix(shape_.batch, width, 0.01 * std::sqrt(width));
    compute::for_each_weight(
        model_, compute::whole_model(model_),
        [&](const compute::WeightInfo& info, int, int local_expert) {
          std::vector<double> values(static_cast<std::size_t>(info.num_elements()));
          const bool ones = info.use == compute::Use::vector;
          const bool identity = info.id == compute::Weight::qkv || info.id == compute::Weight::o;
          if (ones) std::fill(values.begin(), values.end(), 1.0);
          for (int i = 0; identity && i < width; ++i) {
            values[static_cast<std::size_t>(i) * static_cast<std::size_t>(width + 1)] = 1;
          }
          if (info.id == compute::Weight::embedding) {
            values.clear();
            for (const auto& row : embedding_) values.insert(values.end(), row.begin(), row.end());
          }
          const auto encoded = testing::encode(values, DType::bfloat16);
          backend_->load_weight(info.id, info.layer, local_expert,
                                {encoded.data(), DType::bfloat16, info.rows, info.cols});
        });
    backend_->finish_loading();
    chunk_ = backend_->make_chunk();
    tokens_.resize(static_cast<std::size_t>(shape_.batch));
    std::iota(tokens_.begin(), tokens_.end(), 0);
    segments_.resize(tokens_.size());
  }

  /// All sequences have the same keys and values, in pages that lie in no order.
  void fill() {
    const int count = shape_.context * model_.kv_width();
    keys_ = random_.vector(count, 0, 2);
    values_ = random_.vector(count, 0, 1);
    const auto keys = testing::encode(keys_, DType::bfloat16);
    const auto values = testing::encode(values_, DType::bfloat16);
    pages_.resize(static_cast<std::size_t>(copies_ * shape_.batch * pages_each()));
    std::iota(pages_.begin(), pages_.end(), 0);
    std::shuffle(pages_.begin(), pages_.end(), std::mt19937(5));
    for (int s = 0; s < copies_ * shape_.batch; ++s) {
      backend_->finish(
          backend_->load_kv(0, pages_of(s), 0, shape_.context, keys.data(), values.data()));
    }
  }

  std::span<const std::int32_t> pages_of(int sequence) const {
    return std::span(pages_).subspan(static_cast<std::size_t>(sequence * pages_each()),
                                     static_cast<std::size_t>(pages_each()));
  }

  void choose(int copy) {
    for (int s = 0; s < shape_.batch; ++s) {
      segments_[static_cast<std::size_t>(s)] = {s, 1, shape_.context,
                                                pages_of(copy * shape_.batch + s).data()};
    }
    chunk_->tokens = tokens_;
    chunk_->segments = segments_;
  }

  /// The last sequence's row against the oracle's arithmetic.
  void check() {
    choose(0);
    backend_->embed(*chunk_);
    backend_->attention(*chunk_, 0);
    const auto width = static_cast<std::size_t>(model_.hidden);
    std::vector<float> x(embedding_.size() * width);
    backend_->finish(backend_->save_x(*chunk_, x.data()));
    const std::vector<float> got(x.end() - static_cast<std::ptrdiff_t>(width), x.end());
    const auto expected = expected_row();
    for (std::size_t i = 0; i < width; ++i) {
      const double output = expected[i] - embedding_.back()[i];
      require(std::abs(got[i] - expected[i]) < 0.005 + 0.02 * std::abs(output),
              "decode attention: {} instead of {}", got[i], expected[i]);
    }
    backend_->embed(*chunk_);
    backend_->finish(backend_->attention(*chunk_, 0, compute::AttentionPart::project));
  }

  reference::Vector expected_row() const {
    const auto d = static_cast<std::size_t>(shape_.head_dim);
    const auto kv_width = static_cast<std::size_t>(model_.kv_width());
    reference::Vector row = embedding_.back();
    const reference::Vector ones(row.size(), 1.0);
    const auto h =
        reference::rounded(reference::rms_norm(row, ones, model_.rms_eps), reference::to_bfloat16);
    const auto q = reference::rounded(reference::prepare_heads(h, {}, shape_.context, model_),
                                      reference::to_bfloat16);
    for (std::size_t head = 0; head < row.size() / d; ++head) {
      const std::size_t kv = head * d * kv_width / row.size() / d * d;
      reference::Vector scores;
      for (std::size_t at = kv; at < keys_.size(); at += kv_width) {
        double score = 0;
        for (std::size_t i = 0; i < d; ++i) score += q[head * d + i] * keys_[at + i];
        scores.push_back(score / std::sqrt(static_cast<double>(d)));
      }
      scores.push_back(0);  // the new token's own key and value are zero
      reference::softmax(scores);
      for (std::size_t s = 0; s + 1 < scores.size(); ++s) {
        for (std::size_t i = 0; i < d; ++i) {
          row[head * d + i] += scores[s] * values_[s * kv_width + kv + i];
        }
      }
    }
    return row;
  }

  DecodeShape shape_;
  testing::Random random_;
  ModelShape model_;
  int copies_ = 1;
  int next_ = 0;
  std::int64_t read_next_ = 0;
  std::unique_ptr<compute::Backend> backend_;
  std::unique_ptr<compute::Chunk> chunk_;
  std::vector<std::int32_t> tokens_;
  std::vector<compute::Segment> segments_;
  std::vector<std::int32_t> pages_;
  reference::Matrix embedding_;
  reference::Vector keys_;    // [context, kv_heads, head_dim]
  reference::Vector values_;  // the same
  compute::AlignedBuffer words_;
};

}  // namespace atl::perf
