#pragma once
// How balanced a run is, told while it goes on: beside the progress, in the --status file and in
// the report.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/plan/load_watch.hpp"
#include "app/plan/rank_load.hpp"
#include "app/run/groups.hpp"
#include "app/run/traffic.hpp"
#include "comm/topology.hpp"

namespace atl {

/// How far a run is; known on rank 0.
struct RunProgress {
  double seconds = 0;         ///< since the first pass began
  std::int64_t total = -1;    ///< tokens, of prompts and at most to generate; -1: not known yet
  std::int64_t left = 0;      ///< of these
  std::int64_t requests = 0;  ///< read so far
  std::int64_t finished = 0;  ///< of these
  std::int64_t waiting = 0;   ///< that no rank has taken
  std::int64_t saved = 0;     ///< tokens of prompts that had been computed for others
  std::int64_t proposed = 0;  ///< tokens that were guessed
  std::int64_t accepted = 0;  ///< of these, that were drawn as well
};

/// Says in the --status file no more than that a run has started, or had nothing to do. Throws
/// Error where it cannot be written.
void write_state(const std::string& path, std::string_view state);

class RunWatch {
 public:
  /// `status`: the file; empty: none. Both groups and topology outlive this.
  RunWatch(const Groups& groups, const comm::Topology& topology, int num_experts,
           std::string status);

  /// What this rank has done since the last call.
  RankWork work_since(const Traffic& traffic, double expert_seconds);
  /// Every rank's, as they agree on a pass.
  void add(std::span<const RankLoad> loads);

  /// On rank 0: whether the status is due at `seconds` of the run.
  bool due(double seconds) const { return !path_.empty() && seconds >= next_; }
  /// Collective. `state`: "running", or how the run ended.
  void write_status(std::string_view state, const RunProgress& progress, const Traffic& traffic);

  const LoadWatch& loads() const { return watch_; }
  std::string rank_text(int rank) const;  ///< with its host, where there are several
  /// Which ranks get less than a whole share of rows, see SlowShares.
  std::string shares_text(std::span<const std::int32_t> shares) const;
  nlohmann::json shares_json(std::span<const std::int32_t> shares) const;

  /// What is out of balance, in a few words; "": nothing.
  std::string remarks() const;
  nlohmann::json report() const;

 private:
  nlohmann::json balance() const;
  const std::string& host_of(int rank) const;

  const Groups& groups_;
  const comm::Topology& topology_;
  int num_experts_;
  std::string path_;
  LoadWatch watch_;
  std::vector<RankWork> works_;  // [ranks]
  RankWork done_;                // by this rank, all in all
  double next_;                  // when the status is written
  // When it was last written:
  RunProgress last_;
  std::vector<std::int64_t> last_tokens_;  // [layers * experts], of all ranks
};

}  // namespace atl
