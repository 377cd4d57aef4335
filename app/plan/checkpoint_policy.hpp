#pragma once
// When a checkpoint begins, what the ranks do next with one under way, and which files stay: rules
// without files or messages.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "app/plan/interval.hpp"
#include "app/plan/rank_load.hpp"

namespace atl {

/// Where a rank is with checkpoints; what RankLoad::checkpoint says.
enum class CheckpointPhase : std::int32_t {
  idle,
  due,      ///< rank 0: a new one should begin
  writing,  ///< the pieces of this rank are not all on the disk yet
  written,
  failed,
};

/// What all ranks do between two passes.
struct CheckpointMove {
  enum class Kind : std::uint8_t {
    none,
    begin,
    go_on,    ///< each rank with pieces left writes some
    end,      ///< all have written theirs
    give_up,  ///< a rank has failed
  };
  Kind kind = Kind::none;
  int failed_rank = -1;  ///< where one has: the first
};
/// From what the ranks said of their phases. `under_way`: one has begun and not ended.
CheckpointMove next_move(std::span<const RankLoad> loads, bool under_way);

/// While a checkpoint is being written, so much of a pass's time goes to it.
inline constexpr double checkpoint_share_of_pass = 0.1;

/// Keeps the interval between the beginnings of two checkpoints. Passes count over all runs of a
/// job; times are of a clock that never says 0.
class CheckpointPolicy {
 public:
  explicit CheckpointPolicy(Interval every) : every_(every) {}

  /// The interval begins anew at this pass; times, when due() is first asked.
  void start_at(std::int64_t pass) { last_pass_ = pass; }
  bool due(std::int64_t pass, double now);
  /// One has begun.
  void begun(std::int64_t pass, double now);
  std::int64_t last_pass() const { return last_pass_; }  ///< in which the last one began

 private:
  Interval every_;
  std::int64_t last_pass_ = 0;
  double last_time_ = 0;  // 0: not known yet
};

/// The files of a run that go now, of `files`, oldest first: the newest two stay, and the one in
/// `needed`, which ranks still read.
std::vector<std::string> retired(std::span<const std::string> files, const std::string& needed);

}  // namespace atl
