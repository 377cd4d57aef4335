#pragma once
// Results back to rank 0 and onto its disk as soon as they are finished.

#include <deque>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "app/mode.hpp"
#include "app/plan/rank_load.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/identity.hpp"
#include "app/run/request_list.hpp"
#include "app/run/request_summary.hpp"
#include "app/run/shards.hpp"
#include "comm/communicator.hpp"
#include "compute/error.hpp"
#include "io/journal.hpp"
#include "io/model_text.hpp"
#include "io/text_file.hpp"

namespace atl {

/// Every request of a job failed; the results, which say why, are written. Exit code 65, which
/// sysexits.h has for input that cannot be used.
class NothingServed : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 65; }
};

/// The results of a run. Each rank writes the lines of its own finished requests; rank 0 takes them
/// at the next pass's start and appends them to the journal beside the output, from which the
/// output is made at the end, in the order of the input. Rank 0 alone, because the output may lie
/// on a disk that the other nodes do not see.
class ResultStore {
 public:
  explicit ResultStore(const comm::Communicator& world) : world_(world) {}

  /// On rank 0, before any work: opens output and journal. Throws Error when they cannot be
  /// written.
  void open(const std::string& output);
  /// On rank 0: the output is a part, of which these facts hold at the end.
  void make_part(std::function<PartFacts()> facts) { part_ = std::move(facts); }

  /// On rank 0, after open(): the identity of the run that left finished results; null without any.
  nlohmann::ordered_json recorded() const;

  /// Collective: starts the journal, or with `resume` takes up what an earlier run of the same
  /// identity has finished. Throws Error when that was another run, or when results of an
  /// interrupted run would be lost. `requests` are those of rank 0, and may still grow; `identity`
  /// counts there alone. `text`, which outlives this, is how tokens are text. Returns on rank 0 for
  /// each request whether it is finished already. Computed again are those of lines that `keeps`
  /// does not take, where there is one, and with `whole_lines` of those of which a part is missing.
  std::vector<bool> begin(const RequestList& requests, const IdentityLike& identity, bool resume,
                          Mode mode, const io::ModelText& text,
                          const std::function<bool(std::int64_t line)>& keeps = {},
                          bool whole_lines = false);
  /// On rank 0, after begin(): the lines of requests that are not served.
  void refuse(const std::vector<Refused>& refused);

  /// Takes over the requests that this rank has finished; `finished` is empty afterwards.
  void take(std::vector<FinishedRequest>& finished);
  /// Bytes that this rank has for rank 0, for RankLoad::result_bytes.
  std::int64_t waiting_bytes() const { return static_cast<std::int64_t>(waiting_.size()); }
  /// Collective, with all ranks' loads: afterwards the results taken so far are in the journal.
  /// Returns on rank 0 of which requests they are.
  std::vector<std::int32_t> collect(std::span<const RankLoad> loads);
  /// On rank 0: returns when the journal is on the disk.
  void sync();

  std::int64_t num_finished() const { return journal_ ? journal_->num_results() : 0; }

  /// When the requests got their tokens and what they scored, on rank 0. Those that ended with an
  /// error count in neither.
  RequestSummary summary();
  /// On rank 0, at the end: writes the output.
  void write();
  /// On rank 0, after write(): says on stderr how many results are errors. Throws NothingServed
  /// where all are.
  void require_served() const;
  /// On rank 0: results go where standard output goes.
  bool on_standard_output() const { return pipe_ && pipe_->place().standard_output; }
  /// On rank 0, when nothing can fail any more that would have to be made from it.
  void remove_journal();

 private:
  /// What the report needs of one finished request; it stays until the end.
  struct Outcome {
    std::int32_t request = 0;
    std::int32_t scored = 0;   // tokens; -1: it failed
    float first_token_s = -1;  // below 0: it came in an earlier run
    float per_token_s = -1;    // below 0: it has not two of them
    double logprob_sum = 0;
  };
  /// What rank 0 is told of it, before its journal line.
  struct Told {
    Outcome outcome;
    std::int64_t line_bytes = 0;
  };
  bool root() const { return world_.rank() == 0; }
  void check_journal(const IdentityLike& identity, bool resume) const;
  void drop_parts_of_lines();
  std::string header() const;
  /// Decodes its tokens, where that is wanted.
  void add_text(FinishedRequest& finished) const;
  /// Takes what a rank had for rank 0 apart, and notes its outcomes.
  void add_lines(std::string_view message, std::string& lines);
  Outcome outcome_of(const FinishedRequest& finished) const;
  /// Of a request that an earlier run finished.
  Outcome kept_outcome(std::size_t request, std::int64_t key) const;
  std::string text_before_stop(const io::Result& result) const;
  /// Its own line of results, or that of its error.
  std::string part_line(std::int64_t key) const;
  /// The line of results of the request at `at`, with all parts of its line; then `at` is behind
  /// them.
  std::string whole_line(std::size_t& at) const;

  const comm::Communicator& world_;
  const RequestList* requests_ = nullptr;  // rank 0
  IdentityLike identity_;                  // rank 0
  std::size_t identified_ = 0;             // rank 0: requests that the journal's header speaks of
  Mode mode_ = Mode::generate;
  const io::ModelText* text_ = nullptr;
  std::string output_;
  std::function<PartFacts()> part_;             // rank 0: of an output that is a part
  std::optional<io::TextFile> pipe_;            // rank 0: output that is no regular file
  std::unique_ptr<io::ResultJournal> journal_;  // rank 0
  std::string waiting_;           // for rank 0: Told and a journal line of each request
  std::deque<Outcome> outcomes_;  // rank 0; grows without being copied
  std::int64_t resumed_ = 0;      // rank 0: of requests that an earlier run finished
  std::int64_t num_lines_ = 0;    // rank 0, as written
  std::int64_t num_errors_ = 0;   // rank 0, as written: results that are errors
  std::string first_error_;       // the first of them, with its line
};

}  // namespace atl
