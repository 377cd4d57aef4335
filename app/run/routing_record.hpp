#pragma once
// Keeps what every token of a run was routed to, in a file (--record-routing).

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "app/run/batcher.hpp"
#include "app/run/computed_rows.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/groups.hpp"
#include "app/run/kept_progress.hpp"
#include "app/run/request_rows.hpp"
#include "comm/communicator.hpp"
#include "compute/types.hpp"
#include "io/routing_file.hpp"

namespace atl {

/// The MoE layers of a model, rising.
std::vector<int> moe_layers_of(const ModelShape& shape);
/// [layers]: the number of each among these; -1: it is a dense one.
std::vector<int> numbers_of_layers(const std::vector<int>& moe_layers, int num_layers);

/// The file that a run over these requests records.
io::RoutingLayout routing_layout(const ModelShape& shape, std::uint64_t model,
                                 const RequestRows& requests);

/// What the record cost one rank.
struct RecordCost {
  std::int64_t rows = 0;  ///< positions recorded
  std::int64_t bytes = 0;
  double seconds = 0;  ///< of the thread that drives the passes
};

/// Gathers choices by request and writes them where a request ends, where much has gathered, and
/// before a checkpoint begins: one that resumes finds everything that its requests have done.
class RoutingRecord {
 public:
  /// Where experts and weights [tokens, top_k] of a chunk in a layer go.
  struct Place {
    std::int32_t* experts = nullptr;  ///< null: nowhere
    float* weights = nullptr;
    float* given_up = nullptr;  ///< [tokens], see Backend::save_choices; null: not wanted
  };

  /// Collective. `num_layers` are the model's. With `resume` goes on with the file that the
  /// interrupted run left, and compares what is there of the requests that are finished with its
  /// checksums. Throws Error on all ranks alike.
  RoutingRecord(const std::string& path, const io::RoutingLayout& layout,
                const comm::Communicator& world, int num_layers, int max_chunks, bool resume,
                const std::vector<Kept>& kept);

  /// The place is filled when the pass has run.
  Place place(int chunk, int layer, std::size_t tokens);
  /// Takes over the choices of the pass that has just run, before the batcher's finish_pass().
  void take(Batcher& batch, int first_slot = 0);
  /// Before it, where several ranks have the sequences: collective over them. The one that speaks
  /// for them gets what the others have of rows and layers; these take over nothing.
  void share(Batcher& batch, int first_slot, const Groups& groups);
  /// Writes what is left of these requests, before their results go anywhere: a result in the
  /// journal has its choices in the file.
  void finish(std::span<const FinishedRequest> requests);
  /// Writes all there is, before a checkpoint begins.
  void flush();
  /// Collective: the file gets its name.
  void close();

  const RecordCost& cost() const { return cost_; }

 private:
  struct Chosen {  // of a chunk in a layer, [tokens, top_k]
    std::vector<std::int32_t> experts;
    std::vector<float> weights;
  };
  struct Open {                          // a request under way
    std::int64_t written = 0;            // rows
    std::vector<std::uint16_t> experts;  // those after
    std::vector<float> weights;
    io::RoutingSummer summer;
  };
  /// The layers, as indices into layout_.layers, that a stage has: [first, end).
  LayerRange layers_of(const Groups& groups, int stage) const;
  std::string packed(Batcher& batch, int first_slot, const Groups& groups) const;
  void unpack(const std::string& text, Batcher& batch, int first_slot, const LayerRange& layers,
              int place, int members);
  Chosen& chosen(int slot, int layer) {
    return chosen_[static_cast<std::size_t>(slot) * layout_.layers.size() +
                   static_cast<std::size_t>(layer)];
  }
  void check_finished(const std::vector<Kept>& kept) const;
  Open& open(std::size_t request, std::int64_t position);
  void append(int chunk, const compute::Segment& segment, std::size_t request);
  void write(std::size_t request, Open& open);

  std::string path_;
  io::RoutingLayout layout_;
  int num_layers_;
  const comm::Communicator& world_;
  std::vector<int> index_of_layer_;  // [layers], -1: dense
  std::vector<Chosen> chosen_;       // [chunks * MoE layers]
  std::optional<io::RoutingWriter> writer_;
  std::unordered_map<std::size_t, Open> open_;
  ComputedRows rows_;
  RecordCost cost_;
};

}  // namespace atl
