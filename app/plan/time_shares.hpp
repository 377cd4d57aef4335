#pragma once
// What a rank's time went to, from when it computed and when its exchanges were under way: the one
// definition, for what is measured and what is predicted.

#include <array>
#include <vector>

namespace atl {

/// Seconds.
struct TimeShares {
  double wall = 0;
  double compute = 0;          ///< the arithmetic queue was busy
  double exchange = 0;         ///< at least one exchange was under way with all ranks present
  double overlapped = 0;       ///< both at once
  double communication = 0;    ///< idle arithmetic while such an exchange was under way
  double synchronisation = 0;  ///< idle arithmetic while an exchange waited for a rank to arrive
  double overhead = 0;         ///< the rest

  void add(const TimeShares& other);
  /// overlapped / min(compute, exchange); 1 where either is 0.
  double overlapped_share() const;
};

/// What may be under way, several at a time.
enum class Busy : int { compute, exchange, waiting };

/// A sweep over what was under way between two times.
class TimeSweep {
 public:
  /// Begins anew, for [begin, end].
  void begin(double from, double to);
  void add(double from, double to, Busy busy);
  /// Of all that was added.
  TimeShares shares();
  /// The same with another end.
  TimeShares shares_until(double to);

 private:
  struct Edge {  // a change of state at a time
    double time;
    int state;
    int change;
  };
  double from_ = 0, to_ = 0;
  std::vector<Edge> edges_;
};

}  // namespace atl
