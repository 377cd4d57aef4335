#pragma once
// What layers_bench measures, and its command line.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

namespace atl::perf {

/// A token's experts are told apart by falling values, which BF16 must keep apart.
inline constexpr int most_top_k = 32;

struct LayersOptions {
  int layers = 6;
  int hidden = 512;
  int intermediate = 512;  ///< hidden width of an expert
  int experts = 0;         ///< 0: one per rank
  int top_k = 2;
  int tokens = 512;    ///< per rank and pass
  int sequence = 128;  ///< tokens of one prompt; 1 is a decode pass's shape
  int chunks = 4;
  std::string routing;  ///< .npy [tokens, layers, k] of a real router; empty: by skew
  std::string route = "flat";
  std::string node_ranks;  ///< ranks on each node; empty: as they share memory
  bool shares_cores = false;
  std::string transport = "auto";
  std::string skew = "uniform";
  double sigma = 1;        ///< of the log-normal loads
  double hot_share = 0.5;  ///< of first choices that go to the hot expert or node
  int repetitions = 5;
  int warm_up = 1;
  int seed = 1;
  bool paced = false;  ///< arithmetic is a timer
};

inline const std::vector<std::string> skew_names = {"uniform", "log-normal", "hot-expert",
                                                    "hot-node", "rotating"};

/// What the command line of layers_bench says.
struct Arguments {
  LayersOptions options;
  std::string json_file, trace_file, routing_file, shares_cores = "auto";
  bool tiny = false;
};

/// Returns the exit code of a wrong or --help command line, or -1.
inline int parse(int argc, char** argv, int rank, int num_ranks, Arguments& a) {
  CLI::App app("MoE layers with a given routing: what overlap is worth");
  LayersOptions& o = a.options;
  app.add_option("--layers", o.layers)->check(CLI::Range(1, 1000));
  app.add_option("--hidden", o.hidden)->check(CLI::Range(64, 65536));
  app.add_option("--intermediate", o.intermediate)->check(CLI::Range(1, 1 << 20));
  app.add_option("--experts", o.experts, "0: one per rank")->check(CLI::Range(0, 4096));
  app.add_option("--top-k", o.top_k)->check(CLI::Range(1, most_top_k));
  app.add_option("--tokens", o.tokens, "per rank")->check(CLI::Range(1, 1 << 20));
  app.add_option("--sequence", o.sequence, "tokens of a prompt")->check(CLI::Range(1, 1 << 20));
  app.add_option("--chunks", o.chunks)->check(CLI::Range(1, 64));
  app.add_option("--route", o.route)->check(CLI::IsMember({"flat", "nodes"}));
  app.add_option("--node-ranks", o.node_ranks, "ranks on each node, as for atoll run");
  app.add_option("--transport", o.transport)
      ->check(CLI::IsMember({"auto", "ialltoallv", "pairwise"}));
  app.add_option("--skew", o.skew)->check(CLI::IsMember(skew_names));
  app.add_option("--routing", o.routing, "choices of a real router (.npy [tokens, layers, k])");
  app.add_option("--sigma", o.sigma, "of log-normal loads")->check(CLI::Range(0.0, 5.0));
  app.add_option("--hot-share", o.hot_share)->check(CLI::Range(0.0, 1.0));
  app.add_option("--repetitions", o.repetitions)->check(CLI::Range(1, 60));
  app.add_option("--warm-up", o.warm_up)->check(CLI::Range(0, 50));
  app.add_option("--seed", o.seed);
  app.add_flag("--paced", o.paced, "arithmetic becomes a timer of rows times what a row costs");
  app.add_option("--shares-cores", a.shares_cores)->check(CLI::IsMember({"auto", "yes", "no"}));
  app.add_option("--json", a.json_file, "write everything there");
  app.add_option("--trace", a.trace_file, "write the events of one overlapped pass there");
  app.add_option("--routing-only", a.routing_file, "write each token's experts there, and end");
  app.add_flag("--tiny", a.tiny, "small enough for a test");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::ostringstream silent;  // one rank prints
    return (rank == 0 ? app.exit(error) : app.exit(error, silent, silent)) == 0 ? 0 : 2;
  }
  if (a.tiny) {
    o.layers = 2;
    o.hidden = 64;
    o.intermediate = 64;
    o.tokens = 32;
    o.sequence = 8;
    o.repetitions = 2;
  }
  o.sequence = std::min(o.sequence, o.tokens);
  o.tokens = o.tokens / o.sequence * o.sequence;
  if (o.experts == 0) o.experts = std::max(2, num_ranks);
  return -1;
}

}  // namespace atl::perf
