#pragma once
// What ranks' experts had to do in the last passes: who has most, and who is slow for what it has.

#include <cstdint>
#include <span>
#include <vector>

namespace atl {

/// What one rank did for the experts of one pass, all layers together.
struct RankWork {
  std::int64_t rows = 0;                 ///< that its experts computed
  double seconds = 0;                    ///< which that took
  std::int64_t bytes_between_nodes = 0;  ///< that it sent to ranks of other nodes
};

/// An expert that gets more tokens than others of its layer.
struct HotExpert {
  int layer = 0;
  int expert = 0;
  std::int64_t tokens = 0;
  double over_mean = 1;  ///< of its layer's experts
};
/// Those furthest over the mean, at most so many; none that gets less than one and a half times it.
/// `tokens` [layers * experts].
std::vector<HotExpert> hot_experts(std::span<const std::int64_t> tokens, int num_experts,
                                   std::size_t most);

/// A rank that takes longer than others would for as many rows.
struct SlowRank {
  int rank = 0;
  double times = 1;  ///< how much longer
};

/// Moving averages over passes. Ranks are compared with those that compute the same layers.
class LoadWatch {
 public:
  /// `group_of_rank` [ranks]: ranks of one group exchange rows with one another.
  /// `node_of_rank` [ranks].
  LoadWatch(std::vector<int> group_of_rank, std::vector<int> node_of_rank);

  /// After each pass in which experts computed: every rank's. [ranks]
  void add(std::span<const RankWork> of_pass);

  /// Passes that have been added.
  std::int64_t passes() const { return passes_; }
  struct Busiest {
    int number = 0;  ///< of the rank, or node
    double over_mean = 1;
  };
  /// The rank with most rows for those of its group, over the group's mean.
  Busiest busiest_rank() const;
  /// Likewise the node that sends most bytes to others.
  Busiest busiest_node() const;
  /// By how much they are slow, the slowest first. A rank's time is held against a line through
  /// those of the others of its group, as seconds by rows: so a rank that is merely loaded is none.
  /// None in groups of less than three, nor before `least_passes`.
  std::vector<SlowRank> slow_ranks() const;
  /// [ranks]: passes in which a rank was among these, as far as that was looked at.
  std::span<const std::int64_t> slow_passes() const { return slow_passes_; }

  static constexpr double slow_from = 1.5;
  static constexpr std::int64_t least_passes = 16;

 private:
  struct Average {
    double rows = 0;
    double seconds = 0;
    double bytes = 0;
  };
  struct Line {
    double slope = 0, height = 0;  // seconds a row, and of none
    double per_row = 0;            // seconds, all of a rank's over all of its rows
    double most_rows = 0;          // of the ranks it goes through
    double known_to = 0;           // rows
    double seconds_for(double rows) const;
  };
  static Line line_through(std::span<const Average> ranks);
  std::vector<Average> others_of(const std::vector<int>& group, int rank) const;

  std::vector<int> group_of_;
  std::vector<int> node_of_;
  std::vector<std::vector<int>> groups_;
  std::vector<Average> averages_;  // [ranks], per pass
  std::vector<std::int64_t> slow_passes_;
  std::int64_t passes_ = 0;
};

}  // namespace atl
