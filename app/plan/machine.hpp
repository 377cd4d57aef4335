#pragma once
// A machine as a value: what a rank computes, what its memory and links carry, and what the host
// adds to each step. Stated, or measured by perf/calibrate; what the planner prices work with.

#include <cstdint>
#include <string>
#include <vector>

namespace atl {

/// Where a figure comes from.
enum class Basis : std::uint8_t { measured, stated, extrapolated };
std::string_view name_of(Basis basis);

/// What one class of links carries, in bytes per second and direction; 0: not limited there.
struct LinkRates {
  double rank_bytes_per_s = 0;  ///< a rank's own port
  double node_bytes_per_s = 0;  ///< all ranks of a node together
  double pair_bytes_per_s = 0;  ///< one message alone
  double latency_s = 0;         ///< one way
  /// What a rank's arithmetic loses for each byte that it sends or receives meanwhile.
  double arithmetic_s_per_byte = 0;
};

/// How nodes are joined.
enum class Fabric : std::uint8_t {
  tree,       ///< switches over switches: LinkLevel
  mesh,       ///< a link for each pair of nodes
  dragonfly,  ///< groups of nodes, a link for each pair of groups
};
std::string_view name_of(Fabric fabric);

/// Switches with so many nodes below each, and what goes up from there over what may come in:
/// 1 is a full tree, which nothing waits for.
struct LinkLevel {
  std::string name;
  int nodes = 0;
  double oversubscription = 1;
};

/// Ranks [first, end) that are slower than the others; 1 is as fast.
struct RankSpeed {
  int first = 0;
  int end = 0;
  double arithmetic = 1;
  double link = 1;  ///< of the links between nodes
};

/// Seconds of one matrix product by its rows, as measured: [depth, columns].
struct GemmLadder {
  double depth = 0;
  double columns = 0;
  std::vector<double> rows;     ///< rising
  std::vector<double> seconds;  ///< of each
};

/// Attention itself, without its projections, of so many consecutive rows of a sequence, as
/// measured: over the longer of its operations and of reading its keys and values at the rates of
/// the machine.
struct AttentionLadder {
  double tokens = 0;               ///< rows; 1: of each of several sequences that generate
  std::vector<double> contexts;    ///< rising: tokens of the sequence before them
  std::vector<double> over_bound;  ///< of each
};

/// Experts of a rank together, as measured: over what their products and rows come to one by one.
struct ExpertsLadder {
  std::vector<double> busiest_over_mean;  ///< rows of an expert, rising
  std::vector<double> over_products;      ///< of each
};

/// A figure of the machine's file, for the answer.
struct MachineFigure {
  std::string name;
  double value = 0;
  Basis basis = Basis::stated;
  std::string source;
};

struct Machine {
  std::string name;
  std::string processor;  ///< on which it was measured; empty: stated
  bool cuda = true;       ///< which backend's memory plan and queues
  int num_nodes = 1;
  int ranks_of_node = 1;

  double peak_flops_per_s = 0;  ///< of a rank, for MFU
  double flops_per_s = 0;       ///< of matrices, reached
  double memory_bytes = 0;      ///< of a rank
  double peak_bytes_per_s = 0;
  double bytes_per_s = 0;      ///< of weights, keys and values, reached
  double row_bytes_per_s = 0;  ///< of rows that are copied, summed or normalised; 0: not counted
  std::vector<GemmLadder> ladders;
  std::vector<AttentionLadder> attention;  ///< by rising tokens; empty: as long as its bound
  ExpertsLadder experts;                   ///< empty: as long as their products

  LinkRates inside, between;
  Fabric fabric = Fabric::tree;
  bool rails = false;  ///< the ranks of one place on their nodes have switches of their own
  std::vector<LinkLevel> levels;
  int nodes_of_group = 0;        ///< dragonfly
  double link_bytes_per_s = 0;   ///< mesh and dragonfly: of each link, in each direction
  double stream_efficiency = 1;  ///< of `between`, already in its rates; for the answer

  double launch_s = 0;     ///< from enqueueing a step on an idle queue to its begin
  double poll_s = 0;       ///< until the host sees that something is done
  double message_s = 0;    ///< of the host, for each message that it posts
  double agree_s = 0;      ///< of all ranks, on a pass
  double eager_bytes = 0;  ///< messages up to this size do not wait for the receiver

  std::vector<RankSpeed> speeds;
  std::vector<MachineFigure> figures;

  int num_ranks() const { return num_nodes * ranks_of_node; }
  /// [ranks]: the node of each of the first `ranks`, node by node. Throws Error where there are
  /// fewer.
  std::vector<int> nodes_of(int ranks) const;
  RankSpeed speed_of(int rank) const;
  /// Between what was measured, by the logarithms of both; outside, as at the end.
  double attention_over_bound(double tokens, double context) const;
  double experts_over_products(double busiest_over_mean) const;
};

}  // namespace atl
