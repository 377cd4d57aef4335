#pragma once
// Ranks that share experts, all in one process, with the rows between them moved as a driver would.
// RankOptions say which backend.

#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <vector>

#include "tests/compute/shared_attention.hpp"

namespace atl::testing {

using compute::ExpertPart;
using compute::RowBlock;

class ExpertMembers {
 public:
  ExpertMembers(const reference::Model& model, int members, RankOptions rank, CopyBytes copy)
      : shape_(model.shape), element_(size_of(rank.dtype)), copy_(std::move(copy)) {
    const auto make = rank.make_backend;
    for (int m = 0; m < members; ++m) {
      rank.make_backend = [&, m](compute::BackendOptions options) {
        options.part.expert_share = compute::share_experts(shape_, members, m);
        return make(options);
      };
      ranks_.push_back(std::make_unique<SingleRank>(model, rank));
    }
  }

  /// Results of rows that came to the members: `rows` and results [all rows, H], those of a member
  /// together, and among these those of an expert; counts [members][experts]. Blocks lie backwards
  /// in memory.
  std::vector<std::byte> run(int layer, const std::vector<std::vector<int>>& counts,
                             const std::vector<std::byte>& rows) {
    counts_ = counts;
    std::vector<std::vector<RowBlock>> own;
    for (int m = 0; m < members(); ++m) own.push_back(place_rows(m, rows));
    const auto run_own = [&](ExpertPart part) {
      for (int m = 0; m < members(); ++m) step(m, layer, own[static_cast<std::size_t>(m)], part);
    };
    if (members() == 1) {
      run_own(ExpertPart::all);
      return results(own);
    }
    run_own(ExpertPart::collect);
    between([&](int from, int to) {
      const std::int64_t first = first_row(from) * shape_.hidden;
      move(at(chunk(to).expert_rows, first), at(chunk(from).expert_rows, first),
           num_rows(from) * shape_.hidden);
    });
    run_all(layer, ExpertPart::up);
    between([&](int from, int to) {
      const std::int64_t part = all_rows() * shape_.moe_intermediate / members();
      move(at(chunk(to).inner_rows, from * part), at(chunk(from).inner_rows, from * part), part);
    });
    run_all(layer, ExpertPart::down);
    between([&](int from, int to) {
      const std::int64_t width = shape_.hidden / members();
      move(at(chunk(to).down_recv, from * num_rows(to) * width),
           at(chunk(from).down_send, first_row(to) * width), num_rows(to) * width);
    });
    run_own(ExpertPart::write);
    return results(own);
  }

  int members() const { return static_cast<int>(ranks_.size()); }
  SingleRank& rank(int member) { return *ranks_[static_cast<std::size_t>(member)]; }

 private:
  compute::Chunk& chunk(int member) { return rank(member).chunk(); }
  std::int64_t num_rows(int member) const {
    const auto& of_member = counts_[static_cast<std::size_t>(member)];
    return std::accumulate(of_member.begin(), of_member.end(), std::int64_t{0});
  }
  std::int64_t first_row(int member) const {
    std::int64_t first = 0;
    for (int m = 0; m < member; ++m) first += num_rows(m);
    return first;
  }
  std::int64_t all_rows() const { return first_row(members()); }
  void* at(void* base, std::int64_t element) const {
    return static_cast<std::byte*>(base) + element * static_cast<std::int64_t>(element_);
  }
  void move(void* to, const void* from, std::int64_t elements) const {
    copy_(to, from, static_cast<std::size_t>(elements) * element_);
  }
  template <class Move>
  void between(const Move& move) {
    for (int from = 0; from < members(); ++from) {
      for (int to = 0; to < members(); ++to) {
        if (from != to) move(from, to);
      }
    }
  }

  /// The member's rows into dispatch_recv, those of the last expert first, and its blocks.
  std::vector<RowBlock> place_rows(int m, const std::vector<std::byte>& rows) {
    compute::Chunk& mine = chunk(m);
    mine.reserve_receive(num_rows(m));
    if (members() > 1) {
      mine.reserve_experts({all_rows(), num_rows(m)});
      mine.all_expert_rows = all_rows();
      mine.first_expert_row = first_row(m);
      spoil(m);
    }
    std::vector<RowBlock> blocks;
    std::int64_t taken = first_row(m);
    std::int64_t end = num_rows(m);
    const auto& counts = counts_[static_cast<std::size_t>(m)];
    for (std::size_t e = 0; e < counts.size(); ++e) {
      end -= counts[e];
      void* in = at(mine.dispatch_recv, end * shape_.hidden);
      copy_(in, rows.data() + static_cast<std::size_t>(taken * shape_.hidden) * element_,
            static_cast<std::size_t>(counts[e] * shape_.hidden) * element_);
      blocks.push_back({static_cast<std::int32_t>(e), counts[e], in,
                        at(mine.combine_send, end * shape_.hidden)});
      taken += counts[e];
    }
    return blocks;
  }
  void spoil(int m) {
    const auto fill = [&](void* buffer, std::int64_t elements) {
      const std::vector<std::byte> bad(static_cast<std::size_t>(elements) * element_,
                                       std::byte{0xff});
      copy_(buffer, bad.data(), bad.size());
    };
    fill(chunk(m).expert_rows, all_rows() * shape_.hidden);
    fill(chunk(m).inner_rows, all_rows() * shape_.moe_intermediate);
    fill(chunk(m).down_send, all_rows() * shape_.hidden / members());
    fill(chunk(m).down_recv, num_rows(m) * shape_.hidden);
  }

  void step(int m, int layer, const std::vector<RowBlock>& blocks, ExpertPart part) {
    rank(m).finish(rank(m).backend().experts(chunk(m), layer, blocks, part));
  }
  void run_all(int layer, ExpertPart part) {
    for (int m = 0; m < members(); ++m) {
      std::vector<RowBlock> blocks;
      for (std::size_t e = 0; e < counts_.front().size(); ++e) {
        for (int of = 0; of < members(); ++of) {
          const auto& counts = counts_[static_cast<std::size_t>(of)];
          const auto end = counts.begin() + static_cast<std::ptrdiff_t>(e);
          const std::int64_t first = std::accumulate(counts.begin(), end, first_row(of));
          blocks.push_back({static_cast<std::int32_t>(e), counts[e],
                            at(chunk(m).expert_rows, first * shape_.hidden), nullptr});
        }
      }
      step(m, layer, blocks, part);
    }
  }
  std::vector<std::byte> results(const std::vector<std::vector<RowBlock>>& own) {
    std::vector<std::byte> all;
    for (const auto& blocks : own) {
      for (const RowBlock& block : blocks) {
        std::vector<std::byte> rows(static_cast<std::size_t>(block.num_rows * shape_.hidden) *
                                    element_);
        copy_(rows.data(), block.out, rows.size());
        all.insert(all.end(), rows.begin(), rows.end());
      }
    }
    return all;
  }

  ModelShape shape_;
  std::size_t element_;
  CopyBytes copy_;
  std::vector<std::unique_ptr<SingleRank>> ranks_;
  std::vector<std::vector<int>> counts_;
};

/// Rows of each member and expert: many and few, a member and an expert without any.
inline std::vector<std::vector<int>> shared_counts(int members, int experts) {
  std::vector<std::vector<int>> counts(static_cast<std::size_t>(members));
  for (int m = 0; m < members; ++m) {
    for (int e = 0; e < experts; ++e) {
      const bool none = m == 1 || e == 2;
      counts[static_cast<std::size_t>(m)].push_back(none ? 0
                                                         : (m == 0 && e == 0 ? 150 : 3 * m + e));
    }
  }
  return counts;
}

/// Results of rows do not depend on how many ranks share their experts, bit by bit.
inline void expect_same_experts(const ModelShape& shape, const RankOptions& options,
                                const std::vector<int>& numbers,
                                const CopyBytes& copy = copy_on_host) {
  const auto model = random_model(shape, options.dtype, 31);
  ExpertMembers alone(model, 1, options, copy);
  for (const int members : numbers) {
    const auto counts = shared_counts(members, shape.num_experts);
    int all = 0;
    for (const auto& of_member : counts) {
      all += std::accumulate(of_member.begin(), of_member.end(), 0);
    }
    const auto rows =
        encode(Random(32, options.dtype).vector(all * shape.hidden, 0, 1), options.dtype);
    ExpertMembers group(model, members, options, copy);
    const auto got = group.run(1, counts, rows);
    // Alone, one member's rows after the other's.
    std::vector<std::byte> truth;
    auto begin = rows.begin();
    for (const auto& of_member : counts) {
      const auto own = static_cast<std::ptrdiff_t>(
          static_cast<std::size_t>(std::accumulate(of_member.begin(), of_member.end(), 0) *
                                   shape.hidden) *
          size_of(options.dtype));
      const auto results = alone.run(1, {of_member}, {begin, begin + own});
      truth.insert(truth.end(), results.begin(), results.end());
      begin += own;
    }
    EXPECT_EQ(got, truth) << members << " members";
    // Fewer rows in the same memory.
    std::vector<std::vector<int>> few(counts.size(), std::vector<int>(counts.front().size(), 0));
    few.back()[1] = 1;
    const auto row = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(shape.hidden) *
                                                 size_of(options.dtype));
    EXPECT_EQ(group.run(1, few, {rows.begin(), rows.begin() + row}),
              alone.run(1, {few.back()}, {rows.begin(), rows.begin() + row}))
        << members << " members, one row";
  }
}

}  // namespace atl::testing
