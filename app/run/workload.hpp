#pragma once
// What a run has to do: its requests, narrowed to its shard, and what earlier runs have finished of
// them; with the files that are written for them.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/mode.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/checkpoints.hpp"
#include "app/run/devices.hpp"
#include "app/run/identity.hpp"
#include "app/run/kept_progress.hpp"
#include "app/run/open_model.hpp"
#include "app/run/results.hpp"
#include "app/run/shards.hpp"
#include "comm/communicator.hpp"
#include "io/requests.hpp"
#include "io/text_file.hpp"

namespace atl {

class Workload {
 public:
  Workload(const comm::Communicator& world, const RunOptions& options);

  /// Collective: reads the requests, opens what is written for them, and takes up what is kept of
  /// them. Also fixes the arithmetic, since a resumed run computes as the run before did.
  /// `replay` is what the identity says of choices that are replayed; empty: none are.
  void read(const OpenModel& model, const BackendChoice& choice, const std::string& replay);
  /// Where a file of this run given as `path` is written: of a shard, the part beside it.
  std::string written(const std::string& path) const {
    return shard_ ? part_path(path, *shard_) : path;
  }

  /// Another run has finished this shard, or it has no request: said on stderr.
  bool nothing_to_do() const { return nothing_to_do_; }
  /// Nothing is loaded for requests that are all refused.
  bool any_to_serve() const;

  Mode mode() const { return mode_; }
  const Arithmetic& arithmetic() const { return arithmetic_; }
  const std::vector<io::Request>& requests() const { return requests_; }
  const std::vector<KeptProgress>& kept() const { return kept_; }
  /// Refuses requests that such a KV cache cannot hold; `limit` says what it was sized by.
  void refuse_beyond_cache(const BatchOptions& batch, const std::string& limit);

  ResultStore results;
  Checkpoints checkpoints;
  std::optional<io::TextFile> report;  ///< rank 0, where wanted

 private:
  bool root() const { return world_.rank() == 0; }
  void read_files(const ModelShape& shape);
  void choose_isa(bool cuda, const OpenModel& model);
  void take_shard();
  void leave_empty_part();

  const comm::Communicator& world_;
  const RunOptions& options_;
  Mode mode_;
  std::optional<Shard> shard_;
  bool nothing_to_do_ = false;
  Arithmetic arithmetic_;
  std::vector<io::Request> requests_;
  std::vector<KeptProgress> kept_;  // [requests]
  nlohmann::ordered_json identity_;
};

}  // namespace atl
