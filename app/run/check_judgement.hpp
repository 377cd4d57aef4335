#pragma once
// What is wrong with a machine, from what its ranks saw and measured: one line each. A value
// without ranks, so that every judgement can be tried.

#include <string>
#include <vector>

#include "app/run/check_facts.hpp"
#include "comm/pair_rates.hpp"

namespace atl {

/// A transport in the test exchange of all ranks.
struct CheckedTransport {
  std::string name;
  bool passed = false;
  double bytes_per_s = 0;  ///< that a rank sends while all others do, the slowest rank's
};

struct MachineFacts {
  std::vector<RankFacts> ranks;    ///< [ranks]
  std::vector<std::string> nodes;  ///< [nodes], names
  std::vector<comm::PairRate> pairs;
  std::vector<CheckedTransport> transports;
  std::string folder;          ///< that all ranks looked at
  std::string folder_problem;  ///< what kept rank 0 from writing there
  bool folder_locks = false;   ///< rank 0 got a lock on its file
  double folder_write_bytes_per_s = 0;
};

/// Problems name the node, rank or link first; notes are no reason to stop.
struct Verdict {
  std::vector<std::string> problems;
  std::vector<std::string> notes;
};
Verdict judge(const MachineFacts& machine);

}  // namespace atl
