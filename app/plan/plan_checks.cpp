#include "app/plan/plan_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace atl {

namespace {

constexpr int num_faults = 15;

class Checker {
 public:
  Checker(const PlanGraph& graph, std::size_t most) : graph_(graph), most_(most) {
    index_of_.assign(static_cast<std::size_t>(std::max(0, graph.num_ranks)), -1);
    std::size_t before = 0;
    for (std::size_t r = 0; r < graph.ranks.size(); ++r) {
      first_.push_back(before);
      auto& index = steps_of_.emplace_back();
      for (std::size_t i = 0; i < graph.ranks[r].steps.size(); ++i) {
        const Step& step = graph.ranks[r].steps[i].step;
        index.try_emplace(key_of(step.kind, step), i);
      }
      before += graph.ranks[r].steps.size();
      const std::int32_t rank = graph.ranks[r].rank;
      if (known(rank)) index_of_[static_cast<std::size_t>(rank)] = static_cast<std::int32_t>(r);
    }
    num_operations_ = before;
  }

  std::vector<PlanFinding> run() {
    check_devices();
    check_dependencies();
    check_messages();
    check_order();
    check_cycles();
    check_rows();
    return findings_;
  }

 private:
  bool known(std::int32_t rank) const { return rank >= 0 && rank < graph_.num_ranks; }

  template <class... Args>
  void found(PlanFault fault, fmt::format_string<Args...> format, Args&&... args) {
    if (++counts_[static_cast<std::size_t>(fault)] > most_) return;
    findings_.push_back({fault, fmt::format("{}: {}", name_of(fault),
                                            fmt::format(format, std::forward<Args>(args)...))});
  }

  void check_devices() {
    for (const RankGraph& rank : graph_.ranks) {
      if (!known(rank.rank)) {
        found(PlanFault::no_device, "rank {} of {} has {} operations", rank.rank, graph_.num_ranks,
              rank.steps.size());
      }
      std::set<std::tuple<StepKind, int, int>> seen;
      for (const GraphStep& s : rank.steps) {
        if (!seen.insert({s.step.kind, s.step.layer, s.step.chunk}).second) {
          found(PlanFault::twice, "rank {} has {} twice", rank.rank, s.step.name());
        }
      }
    }
  }

  /// Steps on one rank: what each waits for, and what it takes from it.
  void check_dependencies() {
    for (const RankGraph& rank : graph_.ranks) {
      std::vector<bool> used(rank.steps.size());
      for (std::size_t i = 0; i < rank.steps.size(); ++i) {
        const GraphStep& step = rank.steps[i];
        const GraphStep* before = nullptr;
        for (const std::int32_t dep : step.step.deps) {
          if (dep < 0 || static_cast<std::size_t>(dep) >= rank.steps.size()) {
            found(PlanFault::unknown_dependency, "rank {}: {} waits for step {} of {}", rank.rank,
                  step.step.name(), dep, rank.steps.size());
            continue;
          }
          used[static_cast<std::size_t>(dep)] = true;
          const GraphStep& other = rank.steps[static_cast<std::size_t>(dep)];
          // Rows come from the last step of the same chunk; others are waited for and no more.
          if (other.step.chunk == step.step.chunk && static_cast<std::size_t>(dep) < i &&
              !counts_only(other, step) && !beside(other, step)) {
            before = &other;
          }
        }
        if (step.step.deps.empty() && !begins(step)) {
          found(PlanFault::unconnected, "rank {}: nothing leads to {}", rank.rank,
                step.step.name());
        }
        if (before != nullptr && graph_.overlapped && before->out != step.in) {
          found(PlanFault::shapes_differ, "rank {}: {} leaves {}, and {} takes {}", rank.rank,
                before->step.name(), text_of(before->out), step.step.name(), text_of(step.in));
        }
      }
      for (std::size_t i = 0; i < used.size(); ++i) {
        if (!used[i] && !ends(rank.steps[i], rank)) {
          found(PlanFault::unconnected, "rank {}: nothing follows {}", rank.rank,
                rank.steps[i].step.name());
        }
      }
    }
  }

  /// Whether `step` waits for the counters of `other` alone, and takes rows from elsewhere.
  static bool counts_only(const GraphStep& other, const GraphStep& step) {
    const StepKind kind = other.step.kind;
    const bool tells = kind == StepKind::across_counts || kind == StepKind::counts ||
                       kind == StepKind::held_counts;
    return tells && other.out != step.in &&
           (step.step.kind == StepKind::counts || step.step.kind == StepKind::regroup ||
            step.step.kind == StepKind::collect || step.step.kind == StepKind::held_counts);
  }
  /// A shared expert works on the rows of x while others are on their way.
  static bool beside(const GraphStep& other, const GraphStep& step) {
    return other.step.kind == StepKind::shared_expert || step.step.kind == StepKind::shared_expert;
  }
  static bool begins(const GraphStep& s) {
    return s.step.kind == StepKind::embed || s.step.kind == StepKind::receive;
  }
  static bool ends(const GraphStep& s, const RankGraph&) {
    return s.step.kind == StepKind::head || s.step.kind == StepKind::forward ||
           s.step.kind == StepKind::tokens;
  }

  /// The step of another rank that takes part in the same exchange; null: there is none.
  const GraphStep* partner(std::int32_t peer, const GraphStep& step) const {
    if (!known(peer) || index_of_[static_cast<std::size_t>(peer)] < 0) return nullptr;
    const RankGraph& rank =
        graph_.ranks[static_cast<std::size_t>(index_of_[static_cast<std::size_t>(peer)])];
    StepKind wanted = step.step.kind;
    if (wanted == StepKind::forward) {
      wanted = StepKind::receive;
    } else if (wanted == StepKind::receive) {
      wanted = StepKind::forward;
    }
    const auto& index =
        steps_of_[static_cast<std::size_t>(index_of_[static_cast<std::size_t>(peer)])];
    const auto found = index.find(key_of(wanted, step.step));
    return found == index.end() ? nullptr : &rank.steps[found->second];
  }

  static std::uint64_t key_of(StepKind kind, const Step& step) {
    return static_cast<std::uint64_t>(kind) << 48 |
           static_cast<std::uint64_t>(static_cast<std::uint16_t>(step.layer)) << 16 |
           static_cast<std::uint64_t>(static_cast<std::uint16_t>(step.chunk));
  }

  void check_messages() {
    constexpr std::int64_t most_rows = std::numeric_limits<std::int32_t>::max();
    for (const RankGraph& rank : graph_.ranks) {
      for (const GraphStep& step : rank.steps) {
        if (!step.exchange() && (!step.sends.empty() || !step.receives.empty())) {
          found(PlanFault::outside_group, "rank {}: {} is arithmetic, and has messages", rank.rank,
                step.step.name());
        }
        std::int64_t sent = 0, received = 0;
        for (const Transfer& send : step.sends) {
          sent += send.rows;
          check_end(rank, step, send, /*sends=*/true);
        }
        for (const Transfer& receive : step.receives) {
          received += receive.rows;
          check_end(rank, step, receive, /*sends=*/false);
        }
        for (const std::int64_t rows : {sent, received}) {
          if (rows <= most_rows) continue;
          found(PlanFault::too_many_rows, "rank {}: {} moves {} rows, and MPI counts {}", rank.rank,
                step.step.name(), rows, most_rows);
        }
      }
    }
  }

  void check_end(const RankGraph& rank, const GraphStep& step, const Transfer& end, bool sends) {
    const char* to = sends ? "to" : "from";
    if (end.peer == rank.rank) {
      return found(PlanFault::to_itself, "rank {}: {} has a message {} itself", rank.rank,
                   step.step.name(), to);
    }
    const GraphStep* other = partner(end.peer, step);
    if (other == nullptr || other->group != step.group) {
      return found(PlanFault::outside_group,
                   "rank {}: {} has a message {} rank {}, which takes no "
                   "part in it",
                   rank.rank, step.step.name(), to, end.peer);
    }
    const auto& ends = sends ? other->receives : other->sends;
    // They are in order of their ranks, unless something is wrong.
    auto match = std::lower_bound(ends.begin(), ends.end(), rank.rank,
                                  [](const Transfer& t, std::int32_t r) { return t.peer < r; });
    if (match == ends.end() || match->peer != rank.rank) {
      match = std::find_if(ends.begin(), ends.end(),
                           [&](const Transfer& t) { return t.peer == rank.rank; });
    }
    if (match == ends.end()) {
      return found(sends ? PlanFault::no_receive : PlanFault::no_send,
                   "rank {}: {} {} {} rows {} rank {}, which does not {} them", rank.rank,
                   step.step.name(), sends ? "sends" : "awaits", end.rows, to, end.peer,
                   sends ? "receive" : "send");
    }
    if (sends && (match->rows != end.rows || match->bytes != end.bytes)) {
      found(PlanFault::sizes_differ,
            "rank {}: {} sends {} rows ({} bytes) to rank {}, which awaits {} ({} bytes)",
            rank.rank, step.step.name(), end.rows, end.bytes, end.peer, match->rows, match->bytes);
    }
  }

  /// Non-blocking collectives of a communicator, of a chunk and group, start in one order.
  void check_order() {
    std::map<std::tuple<Share, std::int32_t, int>,
             std::pair<std::int32_t, std::vector<std::string>>>
        orders;
    for (const RankGraph& rank : graph_.ranks) {
      std::map<std::tuple<Share, std::int32_t, int>, std::vector<std::string>> own;
      for (const GraphStep& s : rank.steps) {
        if (!s.exchange() || s.share == Share::pipe) continue;
        own[{s.share, s.group, s.step.chunk}].push_back(s.step.name());
      }
      for (auto& [group, order] : own) {
        const auto [first, added] = orders.try_emplace(group, rank.rank, order);
        if (added || first->second.second == order) continue;
        const auto& theirs = first->second.second;
        std::size_t at = 0;
        while (at < order.size() && at < theirs.size() && order[at] == theirs[at]) ++at;
        const auto shown = [at](const std::vector<std::string>& all) {
          return at < all.size() ? all[at] : std::string("nothing more");
        };
        found(PlanFault::order_differs, "rank {} starts {} where rank {} starts {}", rank.rank,
              shown(order), first->second.first, shown(theirs));
      }
    }
  }

  /// Operations in an order in which they could run: along dependencies and messages.
  void check_cycles() {
    std::vector<std::int32_t> unmet(num_operations_);
    std::vector<std::vector<std::int32_t>> next(num_operations_);
    const auto edge = [&](std::size_t from, std::size_t to) {
      next[from].push_back(static_cast<std::int32_t>(to));
      ++unmet[to];
    };
    // An exchange is what its members lead to before they take part, and what they end after.
    std::map<std::tuple<Share, std::int32_t, std::uint64_t, std::int32_t>, std::size_t> exchanges;
    const auto exchange_of = [&](const RankGraph& rank, const GraphStep& step) {
      const bool receives = step.step.kind == StepKind::receive;
      const StepKind kind = receives ? StepKind::forward : step.step.kind;
      std::int32_t stage = 0;
      if (step.share == Share::pipe) stage = receives ? rank.stage - 1 : rank.stage;
      const auto [at, added] = exchanges.try_emplace(
          {step.share, step.group, key_of(kind, step.step), stage}, next.size());
      if (added) {
        next.emplace_back();
        unmet.push_back(0);
      }
      return at->second;
    };
    for (std::size_t r = 0; r < graph_.ranks.size(); ++r) {
      const RankGraph& rank = graph_.ranks[r];
      for (std::size_t i = 0; i < rank.steps.size(); ++i) {
        const GraphStep& step = rank.steps[i];
        const bool sends = step.exchange() && !step.sends.empty();
        const std::size_t exchange = step.exchange() ? exchange_of(rank, step) : 0;
        for (const std::int32_t dep : step.step.deps) {
          if (dep < 0 || static_cast<std::size_t>(dep) >= rank.steps.size()) continue;
          edge(first_[r] + static_cast<std::size_t>(dep), first_[r] + i);
          if (sends) edge(first_[r] + static_cast<std::size_t>(dep), exchange);
        }
        if (step.exchange() && !step.receives.empty()) edge(exchange, first_[r] + i);
      }
    }
    const std::size_t all = next.size();
    std::vector<std::int32_t> ready;
    for (std::size_t i = 0; i < all; ++i) {
      if (unmet[i] == 0) ready.push_back(static_cast<std::int32_t>(i));
    }
    std::size_t done = 0;
    for (; done < ready.size(); ++done) {
      for (const std::int32_t to : next[static_cast<std::size_t>(ready[done])]) {
        if (--unmet[static_cast<std::size_t>(to)] == 0) ready.push_back(to);
      }
    }
    if (done == all) return;
    for (std::size_t r = 0; r < graph_.ranks.size(); ++r) {
      for (std::size_t i = 0; i < graph_.ranks[r].steps.size(); ++i) {
        if (unmet[first_[r] + i] == 0) continue;
        found(PlanFault::cycle, "rank {}: {} waits for what waits for it; {} operations never run",
              graph_.ranks[r].rank, graph_.ranks[r].steps[i].step.name(), all - done);
        return;
      }
    }
  }

  /// Rows that routers send out come to experts, and as many results come back.
  void check_rows() {
    struct Sums {
      std::int64_t routed = 0, computed = 0;
    };
    std::map<std::tuple<int, int>, Sums> sums;
    for (const RankGraph& rank : graph_.ranks) {
      for (const GraphStep& s : rank.steps) {
        const auto key = std::tuple(static_cast<int>(s.step.layer), static_cast<int>(s.step.chunk));
        if (s.step.kind == StepKind::route) {
          sums[key].routed += s.in.rows * graph_.top_k;
          check_room(rank, s, s.in.rows, rank.room.chunk_tokens, "tokens");
        }
        sums[key].computed += s.expert_rows;
        if (s.step.kind == StepKind::dispatch) {
          std::int64_t received = 0;
          for (const Transfer& t : s.receives) received += t.rows;
          check_room(rank, s, received, rank.room.receive_rows, "rows from other ranks");
          if (received > s.out.rows) {
            found(PlanFault::rows_lost, "rank {}: {} brings {} rows, and experts compute {}",
                  rank.rank, s.step.name(), received, s.out.rows);
          }
        }
        if (s.step.kind == StepKind::combine) {
          std::int64_t back = 0;
          for (const Transfer& t : s.receives) back += t.rows;
          if (back > s.out.rows) {
            found(PlanFault::rows_lost, "rank {}: {} brings {} rows back, and {} went out",
                  rank.rank, s.step.name(), back, s.out.rows);
          }
        }
      }
    }
    for (const auto& [key, sum] : sums) {
      if (sum.routed == sum.computed) continue;
      found(PlanFault::rows_lost,
            "layer {}, chunk {}: routers send {} rows, and experts compute {}", std::get<0>(key),
            std::get<1>(key), sum.routed, sum.computed);
    }
  }

  void check_room(const RankGraph& rank, const GraphStep& step, std::int64_t rows,
                  std::int64_t room, const char* what) {
    if (rows <= room) return;
    found(PlanFault::too_small, "rank {}: {} has {} {}, and room for {}", rank.rank,
          step.step.name(), rows, what, room);
  }

  const PlanGraph& graph_;
  std::size_t most_;
  std::vector<std::int32_t> index_of_;  // [ranks of the job]
  std::vector<std::size_t> first_;      // [ranks]: operations before
  std::size_t num_operations_ = 0;
  std::array<std::size_t, num_faults> counts_{};
  std::vector<PlanFinding> findings_;
  std::vector<std::unordered_map<std::uint64_t, std::size_t>> steps_of_;  // [ranks], by key_of()
};

}  // namespace

std::string_view name_of(PlanFault fault) {
  static constexpr std::array<std::string_view, num_faults> names = {"no such device",
                                                                     "a step twice",
                                                                     "an unknown dependency",
                                                                     "a cycle",
                                                                     "not connected",
                                                                     "shapes differ",
                                                                     "a send without receive",
                                                                     "a receive without send",
                                                                     "sizes differ",
                                                                     "a message to itself",
                                                                     "order of moves differs",
                                                                     "outside its group",
                                                                     "too many rows for MPI",
                                                                     "a buffer too small",
                                                                     "rows lost"};
  return names[static_cast<std::size_t>(fault)];
}

std::vector<PlanFinding> check_plan(const PlanGraph& graph, std::size_t most) {
  return Checker(graph, most).run();
}

}  // namespace atl
