#include "app/plan/expert_rows.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "app/plan/counted_rows.hpp"

namespace atl {

compute::RowBlock row_block(const ExpertBlock& block, const compute::Chunk& chunk,
                            std::size_t row_bytes) {
  const std::size_t offset = static_cast<std::size_t>(block.first_row) * row_bytes;
  const auto at = [offset](void* base) { return static_cast<std::byte*>(base) + offset; };
  return {block.local_expert, block.num_rows,
          at(block.own ? chunk.dispatch_send : chunk.dispatch_recv),
          at(block.own ? chunk.combine_recv : chunk.combine_send)};
}

std::vector<PlaceRange> places_of_members(const LayerPlacement& placement,
                                          const std::vector<int>& group) {
  std::vector<PlaceRange> members;
  std::int32_t first = std::numeric_limits<std::int32_t>::max();
  for (const int rank : group) {
    members.push_back({placement.first_place_of(rank),
                       static_cast<std::int32_t>(placement.experts_of(rank).size())});
    first = std::min(first, members.back().first);
  }
  for (PlaceRange& member : members) member.first -= first;
  return members;
}

ExpertRows::ExpertRows(std::vector<PlaceRange> members, int own_member)
    : members_(std::move(members)), own_(own_member) {
  std::int32_t places = 0;
  for (const PlaceRange& member : members_) places += member.size;
  packed_.resize(static_cast<std::size_t>(places));
  packed_before_.resize(packed_.size() + 1);
  heard_.resize(members_.size() * num_local());
}

std::size_t ExpertRows::num_local() const {
  return static_cast<std::size_t>(members_[static_cast<std::size_t>(own_)].size);
}

void ExpertRows::packed(std::span<const std::int32_t> counts) {
  std::copy(counts.begin(), counts.end(), packed_.begin());
  std::int64_t before = 0;
  for (std::size_t place = 0; place < packed_.size(); ++place) {
    packed_before_[place] = before;
    before += packed_[place];
  }
  packed_before_.back() = before;
}

std::span<const std::int32_t> ExpertRows::told_to(int member) const {
  const PlaceRange& places = members_[static_cast<std::size_t>(member)];
  return std::span(packed_).subspan(static_cast<std::size_t>(places.first),
                                    static_cast<std::size_t>(places.size));
}

void ExpertRows::heard_from(int member, std::span<const std::int32_t> counts) {
  const auto first = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(member) * num_local());
  std::copy_n(counts.begin(), num_local(), heard_.begin() + first);
}

std::span<const std::int32_t> ExpertRows::counts_of(int member) const {
  if (member == own_) return told_to(own_);
  return std::span(heard_).subspan(static_cast<std::size_t>(member) * num_local(), num_local());
}

void ExpertRows::plan_sends(comm::RowMove& move) const {
  for (std::size_t m = 0; m < members_.size(); ++m) {
    const PlaceRange& places = members_[m];
    const std::int64_t before = packed_before_[static_cast<std::size_t>(places.first)];
    const std::int64_t end = packed_before_[static_cast<std::size_t>(places.first + places.size)];
    move.send_offsets[m] = checked_rows(before, "rows sent");
    // The own rows keep their place among the packed ones.
    move.send_counts[m] = static_cast<int>(m) == own_ ? 0 : checked_rows(end - before, "rows sent");
  }
}

void ExpertRows::plan_receives(comm::RowMove& move) const {
  std::int64_t before = 0;
  for (int member = 0; member < num_members(); ++member) {
    const auto m = static_cast<std::size_t>(member);
    const std::int64_t rows = member == own_ ? 0 : sum_of(counts_of(member));
    move.recv_offsets[m] = checked_rows(before, "rows received");
    move.recv_counts[m] = checked_rows(rows, "rows received");
    before += rows;
  }
}

void ExpertRows::blocks(std::vector<ExpertBlock>& blocks) const {
  blocks.clear();
  const auto own_first = static_cast<std::size_t>(members_[static_cast<std::size_t>(own_)].first);
  for (std::size_t expert = 0; expert < num_local(); ++expert) {
    std::int64_t arrived_before = 0;  // of the members before
    for (int member = 0; member < num_members(); ++member) {
      const bool own = member == own_;
      const auto counts = counts_of(member);
      if (counts[expert] > 0) {
        const std::int64_t group = own ? packed_before_[own_first] : arrived_before;
        blocks.push_back({static_cast<std::int32_t>(expert), counts[expert], own,
                          group + sum_of(counts.first(expert))});
      }
      if (!own) arrived_before += sum_of(counts);
    }
  }
}

}  // namespace atl
