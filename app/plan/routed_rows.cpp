#include "app/plan/routed_rows.hpp"

#include <algorithm>
#include <array>

#include "compute/error.hpp"

namespace atl {

namespace {
constexpr std::size_t most_top_k = 256;
}

std::int64_t own_rows(const JobGroups& groups, const PassLoad& load, int rank, int chunk) {
  const auto owner = static_cast<std::size_t>(groups.group_of(Share::sequences, rank));
  const std::int64_t all = load.owners[owner][static_cast<std::size_t>(chunk)].rows;
  return rows_of_member(all, groups.place_of(Share::owner, rank), groups.job().division().tp)
      .size();
}

namespace {

/// The tokens of a rank in a chunk: its part of its owner's segments.
std::vector<LoadSegment> own_segments(const JobGroups& groups, const PassLoad& load, int rank,
                                      int chunk) {
  const auto owner = static_cast<std::size_t>(groups.group_of(Share::sequences, rank));
  const ChunkLoad& all = load.owners[owner][static_cast<std::size_t>(chunk)];
  const RowRange own =
      rows_of_member(all.rows, groups.place_of(Share::owner, rank), groups.job().division().tp);
  std::vector<LoadSegment> segments;
  std::int64_t row = 0;
  for (const LoadSegment& segment : all.segments) {
    const std::int64_t first = std::max(own.first, row);
    const std::int64_t end = std::min(own.end, row + segment.rows);
    if (first < end) {
      segments.push_back({end - first, segment.first_position + first - row,
                          segment.first_token + static_cast<std::uint64_t>(first - row)});
    }
    row += segment.rows;
  }
  return segments;
}

}  // namespace

RoutedRows::RoutedRows(const JobGroups& groups, const ModelShape& shape, const Placement& placement,
                       const RoutingSource& source, const PassLoad& load,
                       std::span<const int> wanted)
    : source_(source),
      index_of_group_(groups.of(Share::exchange).members.size(), -1),
      num_layers_(shape.num_layers),
      num_chunks_(load.num_chunks) {
  for (std::size_t w = 0; w < wanted.size(); ++w) {
    index_of_group_[static_cast<std::size_t>(wanted[w])] = static_cast<int>(w);
  }
  rows_.resize(wanted.size() * static_cast<std::size_t>(num_layers_ * num_chunks_));
  for (const int group : wanted) {
    const auto ranks = groups.members(Share::exchange, group).size();
    for (std::size_t place = 0; place < ranks; ++place) {
      count_rank(groups, shape, placement, load, group, static_cast<int>(place));
    }
  }
}

void RoutedRows::count_rank(const JobGroups& groups, const ModelShape& shape,
                            const Placement& placement, const PassLoad& load, int group,
                            int place) {
  const std::vector<int>& ranks = groups.members(Share::exchange, group);
  const int rank = ranks[static_cast<std::size_t>(place)];
  const LayerRange layers =
      layers_of_stage(shape.num_layers, groups.job().stage_of(rank), groups.job().division().pp);
  std::vector<compute::ExpertPlaces> views;
  for (const LayerPlacement& kind : placement.kinds) {
    views.push_back(kind.places_seen_by(place, groups.exchange(group)));
  }
  for (int chunk = 0; chunk < num_chunks_; ++chunk) {
    const auto segments = own_segments(groups, load, rank, chunk);
    for (int layer = layers.first; layer < layers.end; ++layer) {
      if (shape.is_dense(layer)) continue;
      const compute::ExpertPlaces& view =
          views[static_cast<std::size_t>(placement.kind_of_layer[static_cast<std::size_t>(layer)])];
      LayerRows& out = rows_[index(group, layer, chunk)];
      if (out.counts.empty()) {
        out.num_ranks = static_cast<int>(ranks.size());
        out.num_places = view.num_places();
        out.num_nodes = view.num_nodes();
        out.counts.resize(ranks.size() * static_cast<std::size_t>(out.num_places));
        out.node_rows.resize(ranks.size() * static_cast<std::size_t>(out.num_nodes));
        out.node_returns.resize(out.node_rows.size());
      }
      std::int64_t before = 0;
      for (LoadSegment segment : segments) {
        // Equally good replicas are taken in turn by a token's place in its chunk.
        segment.first_position = before;
        count(view, segment, layer, place, out);
        before += segment.rows;
      }
    }
  }
}

void RoutedRows::count(const compute::ExpertPlaces& places, const LoadSegment& segment, int layer,
                       int rank, LayerRows& out) const {
  const int k = source_.top_k();
  std::array<std::int32_t, most_top_k> experts{}, chosen{};
  const auto wanted = std::span(experts).first(static_cast<std::size_t>(k));
  const compute::ReplicaTable table = places.table();
  std::int32_t* counts = out.counts.data() + static_cast<std::ptrdiff_t>(rank) * out.num_places;
  std::int32_t* to = out.node_rows.data() + static_cast<std::ptrdiff_t>(rank) * out.num_nodes;
  std::int32_t* back = out.node_returns.data() + static_cast<std::ptrdiff_t>(rank) * out.num_nodes;
  for (std::int64_t t = 0; t < segment.rows; ++t) {
    source_.choose(layer, segment.first_token + static_cast<std::uint64_t>(t), wanted);
    compute::choose_replicas(table, experts.data(), k, static_cast<int>(segment.first_position + t),
                             chosen.data());
    const std::int32_t first_node = table.replicas[chosen[0]].node;
    bool one_node = true;
    for (int j = 0; j < k; ++j) {
      const compute::ReplicaPlace& replica = table.replicas[chosen[static_cast<std::size_t>(j)]];
      ++counts[replica.place];
      one_node = one_node && replica.node == first_node;
      bool seen = false;
      for (int i = 0; i < j; ++i) {
        seen = seen || table.replicas[chosen[static_cast<std::size_t>(i)]].node == replica.node;
      }
      if (!seen) ++to[replica.node];
      ++back[replica.node];
    }
    if (one_node) back[first_node] -= k - 1;
  }
}

}  // namespace atl
