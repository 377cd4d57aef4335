#pragma once
// Balance by offsets on the router's choice (--balance bias), while a run goes on. Results depend
// on a request and on its block: requests are in blocks by their lines, and what one block chose
// decides the offsets of the second one after it, whose requests wait for that.

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/plan/gate_bias.hpp"
#include "app/plan/rank_load.hpp"
#include "app/run/batcher.hpp"
#include "app/run/block_counts.hpp"
#include "app/run/block_journal.hpp"
#include "app/run/groups.hpp"
#include "app/run/twins.hpp"

namespace atl {

struct GateBalanceInput {
  const Groups& groups;
  const ModelShape& shape;
  const BatchOptions& batch;
  double above = 1;  ///< an expert's tokens over the mean of its layer's
  BiasOptions bias;
  compute::AttentionShare attention;  ///< this rank's
  int max_chunks = 1;
  BlockJournal* journal = nullptr;  ///< on rank 0: outlives this
};

class GateBalance {
 public:
  /// Collective: goes on behind the blocks that the journal has.
  explicit GateBalance(const GateBalanceInput& input);

  /// Requests that are computed both ways are taken up, where the batcher has room.
  void take_up(Batcher& batcher) { twins_.take_up(batcher); }
  /// What this rank tells the others. `speaks`: for its sequences, which are `batchers`'.
  BlockLoad load(bool speaks, std::span<const std::unique_ptr<Batcher>> batchers) const;
  /// On rank 0 it adds how many requests the blocks have of those that have been read, and which
  /// wait.
  void add_totals(BlockLoad& load, const RequestList& requests, bool all_read,
                  std::int64_t oldest_waiting_line);
  /// Collective, as the ranks have agreed on a pass: blocks that are done give further offsets.
  void advance(std::span<const RankLoad> loads);
  /// The last line of the input whose request may begin.
  std::int64_t last_open_line() const { return (gate_.blocks() + 2) * options_.block; }

  /// The offsets for the rows of the next pass.
  void prepare(Batcher& batch, int first_slot);
  compute::ChoiceOffsets of(int chunk, int layer) const;
  RoutingRecord::Place place(int chunk, int layer, std::size_t tokens) {
    return counts_.place(chunk, layer, tokens);
  }
  /// Of the pass that has just run, before the batcher's finish_pass(), and after it: twins are no
  /// results of the run.
  void take(Batcher& batch, int first_slot);
  void finish(std::vector<FinishedRequest>& finished);

  /// Collective; on rank 0.
  nlohmann::json report() const;

 private:
  /// What a pass that is under way chooses by.
  struct Tables {
    std::vector<std::int64_t> blocks;        // of its sequences
    std::vector<std::vector<float>> tables;  // [MoE layers][blocks, experts]
  };

  void add_block(std::span<const std::int64_t> counts, const Drift& drift);
  std::int32_t table_of(Tables& pass, std::int64_t block) const;

  const Groups& groups_;
  BiasOptions options_;
  int place_, members_;
  std::size_t num_layers_, num_experts_;
  std::vector<int> index_of_layer_;
  GateBias gate_;
  BlockCounts counts_;
  Twins twins_;
  BlockJournal* journal_;

  std::int64_t sampled_blocks_ = 0;         // whose samples are done
  std::map<std::int64_t, Drift> drift_of_;  // of those that have not been added
  std::size_t next_prompt_ = 0,
              next_sampled_ = 0;  // rank 0: first requests of the blocks under way
  std::vector<double> busiest_;   // by block: an expert's load, mean over layers

  static constexpr std::int64_t no_block = -1;           // of twins: its offsets are zero
  std::vector<Tables> passes_;                           // by the slot of their first chunk
  std::vector<std::size_t> pass_of_chunk_;               // by slot
  std::vector<std::vector<std::int32_t>> table_of_row_;  // by slot: of each own row
};

}  // namespace atl
