#pragma once
// When checkpoints are written, what goes into them, and what a resumed run takes out.
//
// A snapshot costs no copy: keys and values of a position never change once they are written, and a
// sequence keeps its pages until it is finished. So a checkpoint notes at a pass boundary how far
// every sequence has come, and its keys and values are written in small pieces between the passes
// that follow. What is finished meanwhile is in the results and not missed.

#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "app/config.hpp"
#include "app/plan/admission.hpp"
#include "app/plan/checkpoint_policy.hpp"
#include "app/plan/placement.hpp"
#include "app/run/batcher.hpp"
#include "app/run/checkpoint_folder.hpp"
#include "app/run/driver.hpp"
#include "app/run/request_queue.hpp"
#include "app/run/shared_kv.hpp"
#include "comm/communicator.hpp"
#include "io/checkpoint.hpp"

namespace atl {

/// What checkpoints cost one rank.
struct CheckpointCost {
  std::int64_t written = 0;
  std::int64_t failed = 0;
  std::int64_t bytes = 0;
  double seconds = 0;  ///< of the thread that drives the passes
};

/// What a checkpoint is made of.
struct CheckpointSource {
  std::span<const std::unique_ptr<Batcher>> batchers;  ///< none has a pass under way
  const RequestQueue* queue = nullptr;                 ///< on rank 0: what no rank has taken yet
  std::span<const std::int32_t> resumed_waiting;       ///< of these, what this run resumed
  SharedKv* kv = nullptr;
  std::int32_t page_tokens = 0;
  const Traffic* traffic = nullptr;
  const Placement* placement = nullptr;
  const ModelShape* shape = nullptr;
  DType dtype = DType::bfloat16;
};

class Checkpoints {
 public:
  Checkpoints(const comm::Communicator& world, const RunOptions& options);

  /// The identity of the run that left the newest checkpoint that can be read; null without any.
  nlohmann::ordered_json recorded() const { return folder_.recorded(); }
  /// Collective, before any work: prepares the folder. With --resume finds the newest checkpoint
  /// that is whole, and notes in `kept` how far its requests had come. Identity, requests and what
  /// is kept of them are rank 0's. Throws Error when the folder cannot be written or belongs to
  /// another run.
  void open(const IdentityLike& identity, const RequestList& requests, const ModelShape& shape,
            DType dtype, std::vector<KeptProgress>& kept);
  /// The weights that compute from now on, or all that requests under way may have had: requests
  /// under way in a checkpoint are taken up where it names the same before open(). Never called:
  /// checkpoints name none.
  void set_weights(const std::string& names) { weights_ = names; }
  /// How the Batcher gets back what the checkpoint kept.
  Restore restore_into(SharedKv& kv);

  /// What this rank says to the others before each pass.
  std::int32_t phase();
  /// Collective, between two passes, with all ranks' loads: begins, continues or ends a checkpoint.
  /// `pass_seconds` is what the last pass took. A failure is reported, and the run goes on.
  void advance(std::span<const RankLoad> loads, const CheckpointSource& source,
               double pass_seconds);
  /// Collective, between two passes: writes a whole checkpoint now. Returns what to tell the user.
  std::string write_now(const CheckpointSource& source);
  /// Collective, after the last pass: an unfinished checkpoint is not needed any more.
  void close();

  const CheckpointCost& cost() const { return cost_; }

 private:
  /// This rank's next piece: of the `sequence`-th own sequence.
  struct Cursor {
    std::size_t sequence = 0;
    std::int64_t piece = 0;
    int layer = 0;
  };
  bool root() const { return world_.rank() == 0; }
  void find(const RequestList& requests, const ModelShape& shape, DType dtype,
            std::vector<KeptProgress>& kept);
  bool try_checkpoint(const std::string& path, const RequestList& requests, const ModelShape& shape,
                      DType dtype);
  bool began_with_other_weights() const;
  std::string state_text(const CheckpointSource& source) const;
  void begin(const CheckpointSource& source);
  /// What this rank's sequences have beside keys and values.
  struct Kinds {
    std::vector<std::int32_t> tokens;
    std::vector<float> logprobs;
    std::vector<SampledToken> tops;
  };
  /// One of own_, with what there is of it.
  struct Listed {
    io::CheckpointSequence sequence;
    std::vector<std::int32_t> tokens;
    std::vector<float> logprobs;
    std::vector<SampledToken> tops;
    std::vector<std::int32_t> holders;
    std::size_t old = 0;
  };
  void add(const Listed& listed, Kinds& kinds);
  void list_live(const CheckpointSource& source, Kinds& kinds);
  void list_carried(const CheckpointSource& source, Kinds& kinds);
  Kinds list_sequences(const CheckpointSource& source, io::CheckpointContents& contents);
  /// Writes pieces for about `seconds`, at least one. Collective over the sequences' ranks.
  void write_some(const CheckpointSource& source, double seconds);
  /// The same of one piece, and of one layer.
  void write_at_cursor(const CheckpointSource& source, bool& wrote);
  void write_piece(const CheckpointSource& source, const Cursor& at,
                   std::span<const std::int32_t> pages);
  /// Whether the cursor is at a sequence that goes from file to file.
  bool carried() const { return cursor_.sequence >= first_carried_; }
  void end();
  void give_up(const std::string& reason, bool reporter);

  const comm::Communicator& world_;
  const RunOptions& options_;
  CheckpointFolder folder_;
  CheckpointPolicy policy_;
  IdentityLike identity_;  // rank 0
  std::string weights_;    // see set_weights()
  /// Of the whole job, over all its runs. It only orders the files: it begins above all in the
  /// folder, since the highest is tried first and may be a damaged one.
  std::int64_t pass_ = 0;
  CheckpointCost cost_;

  std::unique_ptr<io::CheckpointReader> reader_;  // of the checkpoint that this run resumed from
  std::unordered_map<std::int64_t, std::size_t> saved_;  // request -> its sequence there
  bool restoring_ = false;                               // some of them are still to be taken back
  std::vector<std::int64_t> earlier_loads_;              // [layers * experts], of earlier runs

  std::unique_ptr<io::CheckpointWriter> writer_;    // while one is being written
  bool speaks_ = true;                              // this rank writes the sequences that it has
  std::vector<io::CheckpointSequence> own_;         // live ones, then those carried over
  std::vector<std::vector<std::int32_t>> holders_;  // [own_]: requests whose pages have it
  std::vector<std::size_t> old_;                    // [own_]: of those carried over, there
  std::unordered_map<std::int32_t, std::int64_t> begun_;  // shared beginnings, by their last page
  std::size_t first_carried_ = 0;  // of own_: from here on not taken back yet when it began
  std::int64_t row_bytes_ = 0;
  Cursor cursor_;
  CheckpointPhase phase_ = CheckpointPhase::idle;
  std::string failure_;
  std::vector<std::byte> keys_, values_;  // of one piece
};

}  // namespace atl
