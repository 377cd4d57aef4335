#pragma once

#include "compute/backend.hpp"

namespace atl {

/// What a rank does that found nothing to do: it gives the core away, to its own arithmetic or to
/// ranks that share the core. Sleeps grow while nothing happens.
class BackOff {
 public:
  /// `shares_cores`: this rank has less than a core of its own.
  BackOff(compute::Backend& backend, bool shares_cores);

  void progress() { idle_polls_ = 0; }  ///< something happened
  /// `computing` is the oldest operation under way, null without any; `messages`: some may arrive.
  void idle(const compute::Event* computing, bool messages);
  int idle_polls() const { return idle_polls_; }  ///< since the last progress

 private:
  compute::Backend& backend_;
  bool shares_cores_;
  int idle_polls_ = 0;
};

}  // namespace atl
