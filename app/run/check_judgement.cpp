#include "app/run/check_judgement.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>

namespace atl {

namespace {

// Fractions of the median below which something is slow. Measurements of a sound machine stay well
// above: rates are by processor time and the best of several tries.
constexpr double slow_core = 0.7;
constexpr double slow_memory = 0.5;
constexpr double slow_link = 0.5;
constexpr double slow_folder = 0.1;
constexpr double few_cores = 0.75;  // of a rank's part of its node
constexpr double little_memory = 0.5;
constexpr double robbed_share = 0.5;  // of a core, where the median rank has more than the next
constexpr double whole_share = 0.8;
constexpr double shm_of_rank = 32e6;
constexpr double memlock_for_cards = 1e9;
constexpr double files_at_all = 256;
constexpr double files_of_rank = 8;  // sockets and shared memory of each other rank

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// "0-3 8" of rising numbers.
std::string ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    std::size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    text += fmt::format("{}{}", text.empty() ? "" : " ", numbers[i]);
    if (last > i) text += fmt::format("-{}", numbers[last]);
    i = last;
  }
  return text;
}

std::string ranks_text(const std::vector<int>& ranks) {
  return fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", ranges(ranks));
}

class Judge {
 public:
  explicit Judge(const MachineFacts& machine) : machine_(machine) {
    of_node_.resize(machine.nodes.size());
    for (std::size_t r = 0; r < machine.ranks.size(); ++r) {
      of_node_[static_cast<std::size_t>(machine.ranks[r].node)].push_back(static_cast<int>(r));
    }
  }

  Verdict verdict() {
    libraries();
    cores();
    slow("computes", "GFLOP/s of a core", 1e9, slow_core, &RankFacts::flops_per_s);
    slow("reads its memory", "GB/s", 1e9, slow_memory, &RankFacts::read_bytes_per_s);
    robbed();
    amounts();
    limits();
    links();
    udp();
    transports();
    folder();
    return std::move(verdict_);
  }

 private:
  const RankFacts& rank(int r) const { return machine_.ranks[static_cast<std::size_t>(r)]; }
  template <class... Parts>
  void problem(fmt::format_string<Parts...> text, Parts&&... parts) {
    verdict_.problems.push_back(fmt::format(text, std::forward<Parts>(parts)...));
  }
  template <class... Parts>
  void note(fmt::format_string<Parts...> text, Parts&&... parts) {
    verdict_.notes.push_back(fmt::format(text, std::forward<Parts>(parts)...));
  }

  /// A node's name where `ranks` are all of its ranks, else it and them.
  std::string who(const std::vector<int>& ranks) const {
    const auto node = static_cast<std::size_t>(rank(ranks.front()).node);
    if (ranks == of_node_[node]) return machine_.nodes[node];
    return fmt::format("{} ({})", ranks_text(ranks), machine_.nodes[node]);
  }

  /// The ranks of each node for which `holds`, where there are any.
  void for_each_node(const std::function<bool(const RankFacts&)>& holds,
                     const std::function<void(const std::vector<int>&)>& say) const {
    for (const std::vector<int>& ranks : of_node_) {
      std::vector<int> found;
      for (const int r : ranks) {
        if (holds(rank(r))) found.push_back(r);
      }
      if (!found.empty()) say(found);
    }
  }

  std::vector<double> all(double RankFacts::*value) const {
    std::vector<double> values;
    for (const RankFacts& facts : machine_.ranks) values.push_back(facts.*value);
    return values;
  }

  /// One of several texts that most ranks have, and who has another.
  void same(const char* what, std::string RankFacts::*text) {
    std::map<std::string, int> counts;
    for (const RankFacts& facts : machine_.ranks) ++counts[facts.*text];
    if (counts.size() < 2) return;
    const auto most = std::max_element(counts.begin(), counts.end(), [](auto& a, auto& b) {
                        return a.second < b.second;
                      })->first;
    for_each_node([&](const RankFacts& facts) { return facts.*text != most; },
                  [&](const std::vector<int>& ranks) {
                    problem(
                        "{}: {} is {}, elsewhere {}; start one build with one set of modules "
                        "everywhere",
                        who(ranks), what, rank(ranks.front()).*text, most);
                  });
  }

  void libraries() {
    same("the MPI library", &RankFacts::mpi);
    same("HDF5", &RankFacts::hdf5);
    same("oneDNN", &RankFacts::one_dnn);
    same("this program's build", &RankFacts::build);
    for_each_node([](const RankFacts& facts) { return facts.mpi_loaded.size() > 1; },
                  [&](const std::vector<int>& ranks) {
                    problem(
                        "{}: two MPI libraries in one process ({}): HDF5 or another library was "
                        "built with the other one; build all with one",
                        who(ranks), fmt::join(rank(ranks.front()).mpi_loaded, ", "));
                  });
  }

  /// Ranks of a node whose masks have cores in common, in groups.
  std::vector<std::vector<int>> sharing(const std::vector<int>& ranks) const {
    std::vector<std::vector<int>> groups;
    for (const int r : ranks) {
      std::vector<int> joined = {r};
      std::erase_if(groups, [&](const std::vector<int>& group) {
        const bool common = std::any_of(group.begin(), group.end(), [&](int other) {
          const auto& cores = rank(other).cores;
          return std::any_of(rank(r).cores.begin(), rank(r).cores.end(), [&](int core) {
            return std::binary_search(cores.begin(), cores.end(), core);
          });
        });
        if (common) joined.insert(joined.end(), group.begin(), group.end());
        return common;
      });
      std::sort(joined.begin(), joined.end());
      groups.push_back(std::move(joined));
    }
    return groups;
  }

  void cores() {
    for (const std::vector<int>& ranks : of_node_) {
      for (const std::vector<int>& group : sharing(ranks)) {
        std::set<int> of_group;
        bool alike = true;
        for (const int r : group) {
          of_group.insert(rank(r).cores.begin(), rank(r).cores.end());
          alike = alike && rank(r).cores == rank(group.front()).cores;
        }
        const std::vector<int> list(of_group.begin(), of_group.end());
        if (group.size() > list.size()) {
          problem(
              "{}: {} share core{} {}: {} ranks on {}; bind each to cores of its own, or start "
              "fewer",
              machine_.nodes[static_cast<std::size_t>(rank(group.front()).node)], ranks_text(group),
              list.size() == 1 ? "" : "s", ranges(list), group.size(), list.size());
        } else if (!alike) {
          problem(
              "{}: {} are bound to cores that overlap ({}); bind each to cores of its own, or "
              "none",
              machine_.nodes[static_cast<std::size_t>(rank(group.front()).node)], ranks_text(group),
              ranges(list));
        }
      }
    }
  }

  void slow(const char* does, const char* unit, double scale, double fraction,
            double RankFacts::*rate) {
    const double usual = median(all(rate));
    for_each_node([&](const RankFacts& facts) { return facts.*rate < fraction * usual; },
                  [&](const std::vector<int>& ranks) {
                    problem("{}: {} slowly, {:.3g} {} where others have {:.3g}", who(ranks), does,
                            rank(ranks.front()).*rate / scale, unit, usual / scale);
                  });
  }

  void robbed() {
    const double usual = median(all(&RankFacts::share));
    if (usual < whole_share) return;  // ranks outnumber the cores: said elsewhere
    for_each_node([&](const RankFacts& facts) { return facts.share < robbed_share; },
                  [&](const std::vector<int>& ranks) {
                    problem(
                        "{}: gets {:.0f} % of a core's time where others get {:.0f} %; look for "
                        "other processes there",
                        who(ranks), 100 * rank(ranks.front()).share, 100 * usual);
                  });
  }

  void amounts() {
    const double cores = median(all(&RankFacts::node_cores));
    const double memory = median(all(&RankFacts::memory_given));
    for (const std::vector<int>& ranks : of_node_) {
      const RankFacts& first = rank(ranks.front());
      const std::string& name = machine_.nodes[static_cast<std::size_t>(first.node)];
      if (first.node_cores < few_cores * cores) {
        problem("{}: has {:.3g} cores ({}) where others have {:.3g}", name, first.node_cores,
                first.cores_by, cores);
      }
      if (first.memory_given < little_memory * memory) {
        problem("{}: has {:.3g} GB of memory for a rank where others have {:.3g}", name,
                first.memory_given / 1e9, memory / 1e9);
      }
    }
  }

  void limits() {
    const double files = files_at_all + files_of_rank * static_cast<double>(machine_.ranks.size());
    for (const std::vector<int>& ranks : of_node_) {
      const RankFacts& first = rank(ranks.front());
      const std::string& name = machine_.nodes[static_cast<std::size_t>(first.node)];
      const double wanted = shm_of_rank * static_cast<double>(ranks.size());
      if (first.shm_free < wanted) {
        problem(
            "{}: /dev/shm has {:.0f} of {:.0f} MB free, and {} ranks want {:.0f}; remove what "
            "lies there",
            name, first.shm_free / 1e6, first.shm_size / 1e6, ranks.size(), wanted / 1e6);
      }
      if (first.infiniband && first.memlock >= 0 && first.memlock < memlock_for_cards) {
        problem(
            "{}: ulimit -l allows {:.0f} kB of locked memory, and its card needs all of it; let "
            "it be unlimited",
            name, first.memlock / 1e3);
      }
      if (first.open_files >= 0 && first.open_files < files) {
        problem("{}: ulimit -n allows {:.0f} open files; {} ranks may need {:.0f}", name,
                first.open_files, machine_.ranks.size(), files);
      }
    }
  }

  void links() {
    std::vector<double> best(machine_.nodes.size(), 0);
    for (const comm::PairRate& pair : machine_.pairs) {
      for (const int node : {pair.a, pair.b}) {
        auto& rate = best[static_cast<std::size_t>(node)];
        rate = std::max(rate, pair.bytes_per_s);
      }
    }
    if (machine_.nodes.size() < 3) return;  // of two, neither can be told
    const double usual = median(best);
    std::set<int> slow_nodes;
    for (std::size_t node = 0; node < best.size(); ++node) {
      if (best[node] >= slow_link * usual) continue;
      slow_nodes.insert(static_cast<int>(node));
      problem(
          "{}: its link carries {:.3g} MB/s where others' carry {:.3g}; look at its card, cable "
          "and port",
          machine_.nodes[node], best[node] / 1e6, usual / 1e6);
    }
    // Where others have a part of the ranks' cores, one pair's rate is what the cores were busy
    // with.
    const bool judged = median(all(&RankFacts::share)) >= whole_share;
    for (const comm::PairRate& pair : machine_.pairs) {
      const double expected =
          std::min(best[static_cast<std::size_t>(pair.a)], best[static_cast<std::size_t>(pair.b)]);
      if (slow_nodes.count(pair.a) + slow_nodes.count(pair.b) > 0 ||
          pair.bytes_per_s >= slow_link * expected) {
        continue;
      }
      const std::string said = fmt::format(
          "{} and {}: {:.3g} MB/s between them where each has {:.3g} with others",
          machine_.nodes[static_cast<std::size_t>(pair.a)],
          machine_.nodes[static_cast<std::size_t>(pair.b)], pair.bytes_per_s / 1e6, expected / 1e6);
      if (judged) {
        problem("{}; look at the way between them", said);
      } else {
        note("{}, but cores were busy meanwhile", said);
      }
    }
  }

  /// A node that no partner heard is named alone, others pair by pair.
  void udp() {
    std::map<int, std::set<int>> deaf;  // node and those it did not hear, both ways
    for (const RankFacts& facts : machine_.ranks) {
      for (const int other : facts.unheard) {
        deaf[facts.node].insert(other);
        deaf[other].insert(facts.node);
      }
    }
    std::map<int, std::set<int>> partners;
    for (const comm::PairRate& pair : machine_.pairs) {
      partners[pair.a].insert(pair.b);
      partners[pair.b].insert(pair.a);
    }
    constexpr const char* effect =
        "a rank that stops will be noticed, but not named; let UDP through";
    std::set<int> named;
    for (const auto& [node, others] : deaf) {
      if (others != partners[node] || (others.size() == 1 && deaf[*others.begin()].size() > 1)) {
        continue;
      }
      if (others.size() == 1 && named.count(*others.begin()) > 0) continue;  // the pair's other end
      named.insert(node);
      problem("{}: no datagrams (UDP) between it and other nodes; {}",
              machine_.nodes[static_cast<std::size_t>(node)], effect);
    }
    for (const auto& [node, others] : deaf) {
      for (const int other : others) {
        if (other < node || named.count(node) + named.count(other) > 0) continue;
        problem("{} and {}: no datagrams (UDP) between them; {}",
                machine_.nodes[static_cast<std::size_t>(node)],
                machine_.nodes[static_cast<std::size_t>(other)], effect);
      }
    }
  }

  void transports() {
    for (const CheckedTransport& transport : machine_.transports) {
      if (transport.passed) continue;
      problem(
          "transport {}: a test exchange between all ranks lost or altered rows, or did not end; "
          "use another --transport",
          transport.name);
    }
  }

  void folder() {
    if (!machine_.folder_problem.empty()) {
      problem("rank 0 ({}): {}", machine_.nodes.front(), machine_.folder_problem);
      return;
    }
    for_each_node([](const RankFacts& facts) { return !facts.folder_problem.empty(); },
                  [&](const std::vector<int>& ranks) {
                    problem("{}: {}; all ranks must see one file system", who(ranks),
                            rank(ranks.front()).folder_problem);
                  });
    const double usual = median(all(&RankFacts::folder_bytes_per_s));
    for_each_node(
        [&](const RankFacts& facts) {
          return facts.folder_problem.empty() && facts.folder_bytes_per_s < slow_folder * usual;
        },
        [&](const std::vector<int>& ranks) {
          problem("{}: reads {} at {:.3g} MB/s where others do at {:.3g}", who(ranks),
                  machine_.folder, rank(ranks.front()).folder_bytes_per_s / 1e6, usual / 1e6);
        });
    if (!machine_.folder_locks) {
      note("{} gives no locks: checkpoints and results are written without them", machine_.folder);
      return;
    }
    for_each_node(
        [](const RankFacts& facts) { return facts.folder_problem.empty() && !facts.sees_lock; },
        [&](const std::vector<int>& ranks) {
          note("{}: does not see the lock that rank 0 holds in {}", who(ranks), machine_.folder);
        });
  }

  const MachineFacts& machine_;
  std::vector<std::vector<int>> of_node_;
  Verdict verdict_;
};

}  // namespace

Verdict judge(const MachineFacts& machine) {
  return Judge(machine).verdict();
}

}  // namespace atl
