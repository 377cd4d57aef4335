#pragma once
// What a run has to do: its requests, narrowed to its shard, and what earlier runs have finished of
// them; with the files that are written for them. Requests are with rank 0 alone, and their owners.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/mode.hpp"
#include "app/plan/job_layout.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/block_journal.hpp"
#include "app/run/checkpoints.hpp"
#include "app/run/devices.hpp"
#include "app/run/identity.hpp"
#include "app/run/kept_progress.hpp"
#include "app/run/open_model.hpp"
#include "app/run/request_queue.hpp"
#include "app/run/request_rows.hpp"
#include "app/run/request_source.hpp"
#include "app/run/results.hpp"
#include "app/run/shards.hpp"
#include "comm/communicator.hpp"
#include "io/model_text.hpp"
#include "io/text_file.hpp"

namespace atl {

class Workload {
 public:
  Workload(const comm::Communicator& world, const RunOptions& options);

  /// Collective: reads the requests, opens what is written for them, and takes up what is kept of
  /// them. Also fixes the arithmetic, since a resumed run computes as the run before did.
  /// `replay` is what the identity says of choices that are replayed; empty: none are.
  void read(const OpenModel& model, const BackendChoice& choice, const JobLayout& job,
            const std::string& replay);
  /// Where a file of this run given as `path` is written: of a shard, the part beside it.
  std::string written(const std::string& path) const {
    return shard_ ? part_path(path, *shard_) : path;
  }

  /// Another run has finished this shard, or it has no request: said on stderr.
  bool nothing_to_do() const { return nothing_to_do_; }
  /// Collective: fixes the size of the KV cache, and with it which requests are refused; `limit`
  /// says what gave it. False when all are: nothing is loaded for them.
  bool any_to_serve(const BatchOptions& batch, const std::string& limit);

  Mode mode() const { return mode_; }
  /// After read(), on all ranks: what tokens are as text.
  const io::ModelText& text() const { return *text_; }
  const Arithmetic& arithmetic() const { return arithmetic_; }
  /// Of rank 0, none elsewhere: the requests that have been read, and whether these are all.
  const RequestList& requests() const;
  bool all_read() const { return !source_ || source_->all_taken(); }
  /// On rank 0, after any_to_serve(): those that wait.
  RequestQueue& queue() { return *queue_; }
  /// Puts requests that have been read meanwhile into the queue.
  void take_ready();
  /// On rank 0: the rows of all requests, where files that are asked for have a place for each.
  RequestRows rows() const;
  /// On rank 0, at the end.
  void write_results();

  /// Collective: what an earlier run kept of the first requests.
  std::vector<Kept> shared_kept() const;

  ResultStore results;
  Checkpoints checkpoints;
  std::optional<BlockJournal> blocks;  ///< rank 0, with Balance::bias
  std::optional<io::TextFile> report;  ///< rank 0, where wanted

 private:
  bool root() const { return world_.rank() == 0; }
  void read_files(const ModelShape& shape);
  void read_all_where_needed();
  bool keeps(std::int64_t line) const;
  bool has_rows() const;
  void note_refused() { results.refuse(source_->take_refused()); }
  nlohmann::ordered_json own_identity(const InputFacts& facts) const;
  nlohmann::ordered_json identity_like(const nlohmann::ordered_json& recorded) const;
  void choose_isa(bool cuda, const OpenModel& model, const JobLayout& job);
  void take_shard();
  void leave_empty_part();

  const comm::Communicator& world_;
  const RunOptions& options_;
  Mode mode_;
  std::optional<Shard> shard_;
  bool nothing_to_do_ = false;
  Arithmetic arithmetic_;
  std::uint64_t model_identity_ = 0;
  std::string replay_;  // see read()
  DType dtype_ = DType::bfloat16;
  std::optional<io::ModelText> text_;
  std::optional<RequestSource> source_;  // rank 0
  std::optional<RequestQueue> queue_;    // rank 0
  std::vector<KeptProgress> kept_;       // rank 0: of the first requests
};

}  // namespace atl
