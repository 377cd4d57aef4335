#include "app/plan/pass_model.hpp"

#include <algorithm>
#include <numeric>

#include "app/plan/counted_rows.hpp"
#include "compute/across_rows.hpp"

namespace atl {

namespace {
constexpr double counter = sizeof(std::int32_t);
/// What a rank tells others of the tokens that its heads gave, about.
constexpr double tokens_bytes = 64;

void add_rows(int from, int to, std::int64_t rows, double row, std::vector<Message>& out) {
  const double bytes = static_cast<double>(rows) * row;
  if (rows > 0) out.push_back({from, to, bytes, bytes, rows});
}

/// Counters, and rows that go along.
void add_counters(int from, int to, double header, std::int64_t rows, double row,
                  std::vector<Message>& out) {
  const double bytes = static_cast<double>(rows) * row;
  out.push_back({from, to, header + bytes, bytes, rows});
}
}  // namespace

PricedPasses::PricedPasses(const Setup& setup)
    : s_(setup),
      row_bytes_(setup.shape.hidden * static_cast<double>(size_of(setup.dtype))),
      across_bytes_(static_cast<double>(
          compute::across_row(setup.shape.hidden, setup.dtype, setup.shape.top_k).bytes)) {}

const LayerRows& PricedPasses::rows_of(int exchange, int pass, const Step& step) const {
  return s_.rows[static_cast<std::size_t>(pass)].of(exchange, step.layer, step.chunk);
}

std::vector<std::int64_t> PricedPasses::rows_of_experts(int rank, int pass,
                                                        const Step& step) const {
  const LayerRows& rows = rows_of(s_.groups.group_of(Share::exchange, rank), pass, step);
  const int place = s_.groups.place_of(Share::exchange, rank);
  const auto first = static_cast<std::size_t>(placement_of(step).first_place_of(place));
  std::vector<std::int64_t> sums(placement_of(step).experts_of(place).size());
  for (int from = 0; from < rows.num_ranks; ++from) {
    const auto counts = rows.counts_of(from);
    for (std::size_t e = 0; e < sums.size(); ++e) sums[e] += counts[first + e];
  }
  return sums;
}

std::vector<std::int64_t> PricedPasses::forwarded(int rank, int pass, const Step& step) const {
  const int exchange = s_.groups.group_of(Share::exchange, rank);
  const Layout& layout = s_.groups.exchange(exchange);
  const LayerRows& rows = rows_of(exchange, pass, step);
  const int own = s_.groups.place_of(Share::exchange, rank);
  const int node = layout.node_of(own);
  const auto& first = placement_of(step).first_place_of_node();
  const auto begin = static_cast<std::size_t>(first[static_cast<std::size_t>(node)]);
  const auto end = static_cast<std::size_t>(first[static_cast<std::size_t>(node) + 1]);
  std::vector<std::int64_t> sums(end - begin);
  for (int from = 0; from < rows.num_ranks; ++from) {
    const bool mine =
        from == own || (layout.node_of(from) != node && layout.receiver(from, node) == own);
    if (!mine) continue;
    const auto counts = rows.counts_of(from);
    for (std::size_t i = begin; i < end; ++i) sums[i - begin] += counts[i];
  }
  return sums;
}

std::int64_t PricedPasses::moved_rows(int rank, int pass, const Step& step) const {
  const auto own = own_rows(s_.groups, s_.loads[static_cast<std::size_t>(pass)], rank, step.chunk);
  switch (step.kind) {
    case StepKind::route:
    case StepKind::merge:
      return own * s_.shape.top_k;
    case StepKind::regroup:
    case StepKind::fold: {
      const auto sums = forwarded(rank, pass, step);
      return std::accumulate(sums.begin(), sums.end(), std::int64_t{0});
    }
    case StepKind::collect:
    case StepKind::write: {
      const auto sums = rows_of_experts(rank, pass, step);
      return std::accumulate(sums.begin(), sums.end(), std::int64_t{0});
    }
    default:
      return 0;
  }
}

template <class Use>
auto PricedPasses::with_work(int rank, int pass, const Step& step, const Use& use) const {
  const PassLoad& load = s_.loads[static_cast<std::size_t>(pass)];
  const auto owner = static_cast<std::size_t>(s_.groups.group_of(Share::sequences, rank));
  const ChunkLoad& chunk = load.owners[owner][static_cast<std::size_t>(step.chunk)];
  StepWork work;
  work.layer = step.layer;
  work.all_rows = chunk.rows;
  work.own_rows = own_rows(s_.groups, load, rank, step.chunk);
  work.segments = chunk.segments;
  work.head_rows = rows_of_member(chunk.head_rows, s_.groups.place_of(Share::owner, rank),
                                  s_.groups.job().division().tp)
                       .size();
  std::vector<std::int64_t> experts;
  if (step.kind == StepKind::experts) {
    experts = rows_of_experts(rank, pass, step);
  } else if (step.kind == StepKind::up || step.kind == StepKind::down) {
    const int holder = s_.groups.group_of(Share::holder, rank);
    for (const int member : s_.groups.members(Share::holder, holder)) {
      const auto of_member = rows_of_experts(member, pass, step);
      experts.resize(of_member.size());
      for (std::size_t e = 0; e < experts.size(); ++e) experts[e] += of_member[e];
    }
  }
  work.expert_rows = experts;
  work.moved_rows = moved_rows(rank, pass, step);
  return use(work);
}

double PricedPasses::seconds(int rank, int pass, const Step& step) const {
  const auto cost = static_cast<std::size_t>(rank) % s_.costs.size();
  const double seconds = with_work(rank, pass, step, [&](const StepWork& work) {
    return s_.costs[cost].seconds(step.kind, work);
  });
  return seconds / s_.machine.speed_of(rank).arithmetic;
}

StepNeeds PricedPasses::needs(int rank, int pass, const Step& step) const {
  const auto cost = static_cast<std::size_t>(rank) % s_.costs.size();
  return with_work(rank, pass, step,
                   [&](const StepWork& work) { return s_.costs[cost].needs(step.kind, work); });
}

void PricedPasses::messages(Share share, int group, int pass, const Step& step,
                            std::vector<Message>& out) const {
  const auto& members = s_.groups.members(share, group);
  const int count = static_cast<int>(members.size());
  switch (share) {
    case Share::owner:
      return of_owner(group, pass, step, out);
    case Share::holder:
      return of_holder(group, pass, step, out);
    case Share::exchange:
      return of_flat(group, pass, step, out);
    case Share::node:
      return of_node(group, pass, step, out);
    case Share::rail:
      return of_rail(group, pass, step, out);
    case Share::pipe: {
      // A stage's `forward` and the next one's `receive` are one message: see Simulator.
      const int rank = members.front();
      const auto rows =
          own_rows(s_.groups, s_.loads[static_cast<std::size_t>(pass)], rank, step.chunk);
      const int from = step.layer;
      const double bytes = static_cast<double>(rows) * s_.shape.hidden * sizeof(float);
      if (bytes > 0) out.push_back({from, from + 1, bytes, bytes, rows});
      return;
    }
    default:
      // What heads gave, from the ranks of the last stage.
      for (int from = count - s_.groups.job().division().tp; from < count; ++from) {
        for (int to = 0; to < count; ++to) {
          if (to != from) out.push_back({from, to, tokens_bytes, 0, 0});
        }
      }
  }
}

void PricedPasses::of_owner(int group, int pass, const Step& step,
                            std::vector<Message>& out) const {
  const auto& members = s_.groups.members(Share::owner, group);
  const int count = static_cast<int>(members.size());
  const auto sequences =
      static_cast<std::size_t>(s_.groups.group_of(Share::sequences, members.front()));
  const PassLoad& load = s_.loads[static_cast<std::size_t>(pass)];
  const std::int64_t all = load.owners[sequences][static_cast<std::size_t>(step.chunk)].rows;
  const double element = row_bytes_ / s_.shape.hidden;
  const double heads = static_cast<double>(s_.shape.heads_width()) / count * element;
  const compute::OutputCut cut = s_.form.output;
  const double sums = s_.costs.front().sums_per_member();
  for (int from = 0; from < count; ++from) {
    for (int to = 0; to < count; ++to) {
      if (to == from) continue;
      std::int64_t rows = rows_of_member(all, to, count).size();
      double row = row_bytes_;
      if (step.kind == StepKind::gather) {
        rows = rows_of_member(all, from, count).size();
      } else if (step.kind == StepKind::head_sums) {
        rows = all;
        row = sums * sizeof(float);
      } else if (step.kind == StepKind::heads) {
        if (cut == compute::OutputCut::columns) rows = all;
        row = heads;
      } else if (cut == compute::OutputCut::sum) {
        row = s_.shape.hidden * sizeof(float);
      } else if (cut == compute::OutputCut::columns) {
        row = row_bytes_ / count;
      }
      add_rows(from, to, rows, row, out);
    }
  }
}

void PricedPasses::of_holder(int group, int pass, const Step& step,
                             std::vector<Message>& out) const {
  const auto& members = s_.groups.members(Share::holder, group);
  const int count = static_cast<int>(members.size());
  std::vector<std::int64_t> rows;
  for (const int member : members) {
    const auto sums = rows_of_experts(member, pass, step);
    rows.push_back(std::accumulate(sums.begin(), sums.end(), std::int64_t{0}));
  }
  const std::int64_t all = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  const double element = row_bytes_ / s_.shape.hidden;
  for (int from = 0; from < count; ++from) {
    for (int to = 0; to < count; ++to) {
      if (to == from) continue;
      if (step.kind == StepKind::held_counts) {
        out.push_back({from, to, counter * s_.placement.most_experts_on_a_rank(), 0, 0});
        continue;
      }
      if (step.kind == StepKind::held_rows) {
        add_rows(from, to, rows[static_cast<std::size_t>(from)], row_bytes_, out);
      } else if (step.kind == StepKind::inner_rows) {
        add_rows(from, to, all, s_.shape.moe_intermediate * element / count, out);
      } else {
        add_rows(from, to, rows[static_cast<std::size_t>(to)], row_bytes_ / count, out);
      }
    }
  }
}

/// Whether rows go in the message of their counters.
bool PricedPasses::goes_along(double header, double bytes) const {
  return bytes > 0 && header + bytes <= s_.first_message_bytes;
}

void PricedPasses::of_flat(int group, int pass, const Step& step, std::vector<Message>& out) const {
  const LayerRows& routed = rows_of(group, pass, step);
  const LayerPlacement& placement = placement_of(step);
  const double header = counter * std::max(1, s_.placement.most_experts_on_a_rank());
  for (int token = 0; token < routed.num_ranks; ++token) {
    const auto counts = routed.counts_of(token);
    for (int holder = 0; holder < routed.num_ranks; ++holder) {
      if (holder == token) continue;
      const auto first = static_cast<std::size_t>(placement.first_place_of(holder));
      const auto rows = sum_of(counts.subspan(first, placement.experts_of(holder).size()));
      const bool along = goes_along(header, static_cast<double>(rows) * row_bytes_);
      if (step.kind == StepKind::counts) {
        add_counters(token, holder, header, along ? rows : 0, row_bytes_, out);
      } else if (step.kind == StepKind::combine) {
        add_rows(holder, token, rows, row_bytes_, out);
      } else if (!along) {
        add_rows(token, holder, rows, row_bytes_, out);
      }
    }
  }
}

void PricedPasses::of_node(int group, int pass, const Step& step, std::vector<Message>& out) const {
  const auto& members = s_.groups.members(Share::node, group);
  const LayerPlacement& placement = placement_of(step);
  const double header = counter * std::max(1, s_.placement.most_experts_on_a_rank());
  const int exchange = s_.groups.group_of(Share::exchange, members.front());
  const int node =
      s_.groups.exchange(exchange).node_of(s_.groups.place_of(Share::exchange, members.front()));
  const std::int32_t before = placement.first_place_of_node()[static_cast<std::size_t>(node)];
  for (std::size_t q = 0; q < members.size(); ++q) {
    const auto counts = forwarded(members[q], pass, step);
    for (std::size_t m = 0; m < members.size(); ++m) {
      if (m == q) continue;
      const int holder = s_.groups.place_of(Share::exchange, members[m]);
      const auto first = static_cast<std::size_t>(placement.first_place_of(holder) - before);
      std::int64_t sum = 0;
      for (std::size_t e = 0; e < placement.experts_of(holder).size(); ++e)
        sum += counts[first + e];
      const int from = static_cast<int>(q), to = static_cast<int>(m);
      if (step.kind == StepKind::counts) {
        add_counters(from, to, header, 0, row_bytes_, out);
      } else if (step.kind == StepKind::dispatch) {
        add_rows(from, to, sum, row_bytes_, out);
      } else {
        add_rows(to, from, sum, row_bytes_, out);
      }
    }
  }
}

void PricedPasses::of_rail(int group, int pass, const Step& step, std::vector<Message>& out) const {
  const auto& members = s_.groups.members(Share::rail, group);
  const int exchange = s_.groups.group_of(Share::exchange, members.front());
  const Layout& layout = s_.groups.exchange(exchange);
  const LayerRows& rows = rows_of(exchange, pass, step);
  const double header = counter * (2 + s_.placement.most_places_on_a_node());
  for (std::size_t from = 0; from < members.size(); ++from) {
    const int sender = s_.groups.place_of(Share::exchange, members[from]);
    for (int node = 0; node < rows.num_nodes; ++node) {
      if (node == layout.node_of(sender)) continue;
      const int receiver = layout.receiver(sender, node);
      const int to = s_.groups.place_of(
          Share::rail,
          s_.groups.members(Share::exchange, exchange)[static_cast<std::size_t>(receiver)]);
      const std::int64_t there = rows.node_rows_of(sender, node);
      const bool along = goes_along(header, static_cast<double>(there) * across_bytes_);
      const int at = static_cast<int>(from);
      if (step.kind == StepKind::across_counts) {
        add_counters(at, to, header, along ? there : 0, across_bytes_, out);
      } else if (step.kind == StepKind::across_combine) {
        add_rows(to, at, rows.node_returns_of(sender, node), row_bytes_, out);
      } else if (!along) {
        add_rows(at, to, there, across_bytes_, out);
      }
    }
  }
}

}  // namespace atl
