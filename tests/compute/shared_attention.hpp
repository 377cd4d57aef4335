#pragma once
// Ranks that share attention, all in one process: a backend and a chunk for each member, and the
// rows between them moved by this file as a driver would. RankOptions say which backend.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/tiny_model.hpp"

namespace atl::testing {

using compute::AttentionPart;
using compute::OutputCut;

/// Copies bytes between buffers of chunks and host memory.
using CopyBytes = std::function<void(void* to, const void* from, std::size_t bytes)>;

inline void copy_on_host(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

class AttentionMembers {
 public:
  AttentionMembers(const reference::Model& model, int members, OutputCut output, RankOptions rank,
                   CopyBytes copy = copy_on_host)
      : shape_(model.shape),
        element_(size_of(rank.dtype)),
        has_(output),
        output_(output),
        copy_(std::move(copy)) {
    const auto make = rank.make_backend;
    for (int m = 0; m < members; ++m) {
      rank.make_backend = [&, m](compute::BackendOptions options) {
        options.part.attention = compute::share_attention(shape_, members, m, output);
        return make(options);
      };
      ranks_.push_back(std::make_unique<SingleRank>(model, rank));
      shares_.push_back(compute::share_attention(shape_, members, m, output));
    }
  }

  int members() const { return static_cast<int>(ranks_.size()); }
  SingleRank& rank(int member) { return *ranks_[static_cast<std::size_t>(member)]; }
  const compute::AttentionShare& share(int member) const {
    return shares_[static_cast<std::size_t>(member)];
  }
  int add_sequence() {
    int sequence = 0;
    for (auto& rank : ranks_) sequence = rank->add_sequence();
    return sequence;
  }
  int add_sequence_of(int length) {
    int sequence = 0;
    for (auto& rank : ranks_) sequence = rank->add_sequence_of(length);
    return sequence;
  }

  /// Embeds the next tokens of some sequences, each member its own rows. By OutputCut::either
  /// passes go by rows and by columns in turn.
  void start(std::span<const SingleRank::Piece> pieces) {
    if (has_ == OutputCut::either) {
      output_ = output_ == OutputCut::rows ? OutputCut::columns : OutputCut::rows;
    }
    for (int m = 0; m < members(); ++m) {
      rank(m).set_chunk(pieces);
      compute::Chunk& chunk = rank(m).chunk();
      all_ = static_cast<std::int64_t>(chunk.tokens.size());
      if (members() > 1) {
        chunk.output = output_;
        chunk.all_rows = all_;
        chunk.first_own_row = first_row(m);
        chunk.tokens = chunk.tokens.subspan(static_cast<std::size_t>(first_row(m)),
                                            static_cast<std::size_t>(num_rows(m)));
      }
      rank(m).finish(rank(m).backend().embed(chunk));
    }
  }

  /// One layer's attention, of all members part by part.
  void attention(int layer) {
    if (members() > 1) spoil();
    run(layer, AttentionPart::norm);
    between([&](int from, int to) {
      const std::int64_t first = first_row(from) * shape_.hidden;
      move(at(chunk(to).normed, first), at(chunk(from).normed, first),
           num_rows(from) * shape_.hidden);
    });
    run(layer, AttentionPart::project);
    between([&](int from, int to) { move_sums(from, to); });
    run(layer, AttentionPart::attend);
    between([&](int from, int to) { move_heads(from, to); });
    run(layer, AttentionPart::output);
    between([&](int from, int to) { move_output(from, to); });
    run(layer, AttentionPart::add);
  }

  /// The residual stream [all rows, H].
  std::vector<float> x() {
    std::vector<float> all(static_cast<std::size_t>(all_ * shape_.hidden));
    for (int m = 0; m < members(); ++m) {
      float* own = all.data() + first_row(m) * shape_.hidden;
      rank(m).finish(rank(m).backend().save_x(chunk(m), own));
    }
    return all;
  }

  /// Heads' outputs [all rows, heads * value_dim] of the last attention; of shared attention.
  reference::Matrix heads(DType dtype) {
    const std::size_t width = static_cast<std::size_t>(own_width());
    reference::Matrix rows(static_cast<std::size_t>(all_));
    std::vector<std::byte> row(width * element_);
    for (int m = 0; m < members(); ++m) {
      for (std::int64_t r = 0; r < all_; ++r) {
        copy_(row.data(), at(chunk(m).heads_send, r * own_width()), row.size());
        const auto values = decode(row.data(), width, dtype);
        auto& whole = rows[static_cast<std::size_t>(r)];
        whole.insert(whole.end(), values.begin(), values.end());
      }
    }
    return rows;
  }

 private:
  compute::Chunk& chunk(int member) { return rank(member).chunk(); }
  std::int64_t first_row(int member) const { return all_ * member / members(); }
  std::int64_t num_rows(int member) const { return first_row(member + 1) - first_row(member); }
  int own_width() const { return shape_.heads_width() / members(); }

  void run(int layer, AttentionPart part) {
    for (auto& rank : ranks_) {
      rank->finish(rank->backend().attention(rank->chunk(), layer, part));
    }
  }
  template <class Move>
  void between(const Move& move) {
    for (int from = 0; from < members(); ++from) {
      for (int to = 0; to < members(); ++to) {
        if (from != to) move(from, to);
      }
    }
  }
  void* at(void* base, std::int64_t element) const {
    return static_cast<std::byte*>(base) + element * static_cast<std::int64_t>(element_);
  }
  void move(void* to, const void* from, std::int64_t elements) const {
    copy_(to, from, static_cast<std::size_t>(elements) * element_);
  }

  void move_sums(int from, int to) {
    if (shape_.qk_norm != QkNorm::whole_row) return;
    const std::int64_t sums = all_ * share(from).sums_per_member(shape_);
    copy_(chunk(to).head_sums + from * sums, chunk(from).head_sums + from * sums,
          static_cast<std::size_t>(sums) * sizeof(float));
  }
  void move_heads(int from, int to) {
    const std::int64_t width = own_width();
    if (output_ == OutputCut::columns) {
      move(at(chunk(to).heads_recv, from * all_ * width), chunk(from).heads_send, all_ * width);
    } else if (output_ == OutputCut::rows) {
      move(at(chunk(to).heads_recv, from * num_rows(to) * width),
           at(chunk(from).heads_send, first_row(to) * width), num_rows(to) * width);
    }
  }
  void move_output(int from, int to) {
    if (output_ == OutputCut::rows) return;
    const int width = compute::is_sum(output_) ? shape_.hidden : shape_.hidden / members();
    const auto row =
        static_cast<std::size_t>(width) * (output_ == OutputCut::sum ? sizeof(float) : element_);
    const auto rows = static_cast<std::size_t>(num_rows(to));
    copy_(static_cast<std::byte*>(chunk(to).output_recv) +
              static_cast<std::size_t>(from) * rows * row,
          static_cast<std::byte*>(chunk(from).output_send) +
              static_cast<std::size_t>(first_row(to)) * row,
          rows * row);
  }

  /// Fills what travels with NaN, so that nothing is right that did not come.
  void spoil() {
    const auto fill = [&](void* buffer, std::int64_t bytes) {
      if (buffer == nullptr) return;
      const std::vector<std::byte> bad(static_cast<std::size_t>(bytes), std::byte{0xff});
      copy_(buffer, bad.data(), bad.size());
    };
    const auto element = static_cast<std::int64_t>(element_);
    for (int m = 0; m < members(); ++m) {
      const bool columns = output_ == OutputCut::columns;
      const std::int64_t bytes_out =
          columns ? shape_.hidden / members() * element
                  : shape_.hidden * (output_ == OutputCut::sum ? std::int64_t{4} : element);
      fill(chunk(m).normed, all_ * shape_.hidden * element);
      fill(chunk(m).head_sums, members() * all_ * share(m).sums_per_member(shape_) * 4);
      fill(chunk(m).heads_recv, members() * (columns ? all_ : num_rows(m)) * own_width() * element);
      if (output_ == OutputCut::rows) continue;  // nothing comes of it
      fill(chunk(m).output_send, all_ * bytes_out);
      fill(chunk(m).output_recv, members() * num_rows(m) * bytes_out);
    }
  }

  ModelShape shape_;
  std::size_t element_;
  const OutputCut has_;
  OutputCut output_;  // of the pass
  CopyBytes copy_;
  std::vector<std::unique_ptr<SingleRank>> ranks_;
  std::vector<compute::AttentionShare> shares_;
  std::int64_t all_ = 0;
};

/// Tokens of two sequences in several chunks: prompts, the rest of one beside a token of the other,
/// single tokens, which leave most members without a row.
inline const std::vector<std::pair<int, int>>& shared_passes() {
  static const std::vector<std::pair<int, int>> passes = {
      {131, 6}, {70, 1}, {1, 1}, {0, 1}, {1, 0}};
  return passes;
}

/// The residual stream after the attention of all layers, pass by pass.
inline std::vector<std::vector<float>> attended(AttentionMembers& members, const ModelShape& shape,
                                                const std::vector<std::int32_t>& tokens) {
  const int sequences[] = {members.add_sequence(), members.add_sequence()};
  std::vector<std::vector<float>> result;
  std::span<const std::int32_t> left = tokens;
  for (const auto& [first, second] : shared_passes()) {
    std::vector<SingleRank::Piece> pieces;
    int i = 0;
    for (const int count : {first, second}) {
      const auto taken = static_cast<std::size_t>(count);
      if (count > 0) pieces.push_back({sequences[i], left.first(taken)});
      left = left.subspan(taken);
      ++i;
    }
    members.start(pieces);
    for (int layer = 0; layer < shape.num_layers; ++layer) members.attention(layer);
    result.push_back(members.x());
  }
  return result;
}

/// Shapes whose heads divide among many members, in one group each, in groups of several sizes, or
/// several members to a KV head.
inline std::vector<ModelKind> shared_kinds() {
  const auto heads = [](int query, int kv, QkNorm norm) {
    return [=](ModelShape& s) {
      s.num_heads = query;
      s.num_kv_heads = kv;
      s.qk_norm = norm;
    };
  };
  return {model_kind("mha", heads(8, 8, QkNorm::none)),
          model_kind("mha_whole_row", heads(8, 8, QkNorm::whole_row)),
          model_kind("gqa_per_head", heads(8, 2, QkNorm::per_head)),
          model_kind("gqa_whole_row_uneven", heads(12, 4, QkNorm::whole_row)),
          model_kind("gqa_uneven", heads(12, 4, QkNorm::none)),
          model_kind("mqa_odd_head_dim", [](ModelShape& s) {
            s.num_heads = 6;
            s.num_kv_heads = 1;
            s.head_dim = 10;
          })};
}

/// Members' rows are those of a rank alone, bit by bit, for all these numbers of members.
inline void expect_same_attention(const ModelShape& shape, RankOptions options,
                                  const std::vector<int>& numbers,
                                  const CopyBytes& copy = copy_on_host) {
  const auto model = random_model(shape, options.dtype, 21);
  const auto tokens = Random(22, options.dtype).tokens(220, shape.vocab);
  AttentionMembers alone(model, 1, OutputCut::rows, options, copy);
  const auto truth = attended(alone, shape, tokens);
  // Chunks have room for the rows of all members together, and no more.
  for (const int members : numbers) {
    if (shape.num_heads % members != 0) continue;
    options.max_chunk_tokens = (137 + members - 1) / members;
    for (const OutputCut output : {OutputCut::rows, OutputCut::columns, OutputCut::either}) {
      AttentionMembers group(model, members, output, options, copy);
      EXPECT_EQ(attended(group, shape, tokens), truth)
          << members << " members, " << compute::name_of(output);
    }
  }
}

/// Added up in float32, rows differ from those of a rank alone by what rounding makes: of a dot
/// product of k products each by k units of its products' sizes, once for the whole and once for
/// its summands, which are then added; and of the results by a unit of the activations' type, as of
/// the summands where these are rounded.
inline void expect_summed_attention(const ModelShape& shape, RankOptions options, int members,
                                    OutputCut output, const CopyBytes& copy = copy_on_host) {
  const DType dtype = options.dtype;
  const auto model = random_model(shape, dtype, 23);
  const auto tokens = Random(24, dtype).tokens(90, shape.vocab);
  const SingleRank::Piece piece{0, tokens};
  AttentionMembers alone(model, 1, OutputCut::rows, options, copy);
  AttentionMembers group(model, members, output, options, copy);
  for (AttentionMembers* ranks : {&alone, &group}) {
    ranks->add_sequence();
    ranks->start({&piece, 1});
    ranks->attention(0);
  }
  const auto truth = alone.x();
  const auto got = group.x();
  const reference::Matrix heads = group.heads(dtype);
  const double unit = std::ldexp(1.0, -24);
  const double rounding = dtype == DType::float32 ? unit : std::ldexp(1.0, -8);
  const auto hidden = static_cast<std::size_t>(shape.hidden);
  for (std::size_t r = 0; r < heads.size(); ++r) {
    for (std::size_t c = 0; c < hidden; ++c) {
      double sizes = 0;
      for (std::size_t i = 0; i < heads[r].size(); ++i) {
        sizes += std::abs(heads[r][i] * model.layers[0].o[c][i]);
      }
      const double sums = 2.0 * (shape.q_width() + members) * unit * sizes;
      const double result = std::abs(reference::dot(heads[r], model.layers[0].o[c])) + sums;
      const float expected = truth[r * hidden + c];
      const double summands = output == OutputCut::sum_bf16 ? rounding * sizes : 0;
      const double bound = sums + summands + 2 * rounding * result + 2 * unit * std::abs(expected);
      ASSERT_NEAR(got[r * hidden + c], expected, bound) << "row " << r << ", column " << c;
    }
  }
}

/// What save_kv gives are the kept heads of what a rank alone gives, and load_kv takes it.
inline void expect_kept_heads_saved(const ModelShape& shape, const RankOptions& options,
                                    int members, const CopyBytes& copy = copy_on_host) {
  const DType dtype = options.dtype;
  const auto model = random_model(shape, dtype, 25);
  const auto tokens = Random(26, dtype).tokens(100, shape.vocab);
  const auto prompt = std::span(tokens).first(99);
  AttentionMembers alone(model, 1, OutputCut::rows, options, copy);
  AttentionMembers group(model, members, OutputCut::columns, options, copy);
  AttentionMembers later(model, members, OutputCut::columns, options, copy);
  later.add_sequence_of(70);  // so that it has other pages
  const SingleRank::Piece piece{0, prompt};
  for (AttentionMembers* ranks : {&alone, &group}) {
    ranks->add_sequence();
    ranks->start({&piece, 1});
    for (int layer = 0; layer < shape.num_layers; ++layer) ranks->attention(layer);
  }
  const int continued = later.add_sequence_of(99);
  const std::size_t head = static_cast<std::size_t>(shape.head_dim) * size_of(dtype);
  using Bytes = std::vector<std::byte>;
  const auto save = [&](SingleRank& rank, int layer, std::size_t heads) {
    Bytes keys(99 * heads * head);
    Bytes values(keys.size());
    rank.finish(rank.backend().save_kv(layer, rank.pages_of(0), 0, 99, keys.data(), values.data()));
    return std::pair(keys, values);
  };
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const auto all_heads = static_cast<std::size_t>(shape.num_kv_heads);
    const auto whole = save(alone.rank(0), layer, all_heads);
    for (int m = 0; m < members; ++m) {
      const auto& groups = group.share(m).heads;
      auto kept = save(group.rank(m), layer, groups.size());
      for (std::size_t t = 0; t < 99; ++t) {
        for (std::size_t g = 0; g < groups.size(); ++g) {
          const std::size_t at = (t * all_heads + static_cast<std::size_t>(groups[g].kv_head));
          const std::size_t own = t * groups.size() + g;
          EXPECT_EQ(std::memcmp(&kept.first[own * head], &whole.first[at * head], head), 0);
          EXPECT_EQ(std::memcmp(&kept.second[own * head], &whole.second[at * head], head), 0);
        }
      }
      SingleRank& rank = later.rank(m);
      rank.finish(rank.backend().load_kv(layer, rank.pages_of(continued), 0, 99, kept.first.data(),
                                         kept.second.data()));
    }
  }
  const auto last = [&](AttentionMembers& ranks, int sequence) {
    const SingleRank::Piece next{sequence, std::span(tokens).last(1)};
    ranks.start({&next, 1});
    for (int layer = 0; layer < shape.num_layers; ++layer) ranks.attention(layer);
    return ranks.x();
  };
  const auto truth = last(alone, 0);
  EXPECT_EQ(last(group, 0), truth);
  EXPECT_EQ(last(later, continued), truth);
}

}  // namespace atl::testing
