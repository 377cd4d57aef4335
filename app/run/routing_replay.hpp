#pragma once
// Choices of experts that take the routers' place in a run (--replay-routing).

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "app/run/batcher.hpp"
#include "app/run/finished_request.hpp"
#include "app/run/request_rows.hpp"
#include "comm/communicator.hpp"
#include "compute/backend.hpp"
#include "compute/types.hpp"
#include "io/routing_file.hpp"

namespace atl {

/// A file of choices that a model can follow.
class ReplayFile {
 public:
  /// Collective: all ranks open the file, and rank 0 reads all of it once. Throws Error on all
  /// ranks alike: not a file of choices, of another model, an expert that is none or is there
  /// twice.
  ReplayFile(const std::string& path, const comm::Communicator& world, const ModelShape& shape,
             std::uint64_t model);

  /// For the run's identity: a checksum of the choices, and whose weights they get.
  const std::string& identity() const { return identity_; }
  const std::string& path() const { return reader_->path(); }
  /// Whose weights the choices get: "the recorded", or "the router's".
  const char* weights() const { return reader_->has_weights() ? "the recorded" : "the router's"; }
  bool is_trace() const { return reader_->is_trace(); }
  /// Columns of the file that are used, of how many: a trace may be of more experts a token.
  int top_k() const { return top_k_; }
  int columns() const { return reader_->layout().top_k; }
  io::RoutingReader& reader() { return *reader_; }
  const io::RoutingReader& reader() const { return *reader_; }

 private:
  void check_model(const ModelShape& shape, std::uint64_t model) const;
  std::uint64_t scan(int num_experts);

  std::unique_ptr<io::RoutingReader> reader_;
  int top_k_;
  std::string identity_;
};

/// Gives each pass its choices.
class RoutingReplay {
 public:
  /// Throws Error where a request finds no choices, or fewer than it may need. In a recorded file
  /// requests are found by their ids; a trace is one list of tokens, of which each request in turn
  /// takes as many as request_rows() says.
  /// This rank has the rows of the `place`-th of `members` that share a chunk's.
  RoutingReplay(ReplayFile& file, RequestRows requests, const ModelShape& shape, int num_chunks,
                int place = 0, int members = 1);

  /// Reads the choices of this rank's part of the next pass. Throws Error where a request goes
  /// beyond its choices.
  void prepare(Batcher& batch, int first_slot = 0);
  /// Those of a chunk in a layer; they live until the next pass.
  compute::ForcedChoices of(int chunk, int layer) const;
  /// For the report: the file, its checksum, and whose weights.
  nlohmann::json report() const;
  /// These requests need no more.
  void finish(std::span<const FinishedRequest> requests);

 private:
  struct Chosen {  // of a chunk in a layer, [tokens, top_k]
    std::vector<std::int32_t> experts;
    std::vector<float> weights;
  };
  struct Source {           // of a request
    std::size_t entry = 0;  // request of the file
    std::int64_t first = 0;
    std::int64_t rows = 0;
  };
  struct Ahead {  // rows [first, first + rows) of a request, as they stand in the file
    std::int64_t first = 0;
    std::int64_t rows = 0;
    std::vector<std::int32_t> experts;
    std::vector<float> weights;
  };
  void find_by_id();
  void find_in_trace();
  const Ahead& read_ahead(std::size_t request, std::int64_t first, std::int64_t rows);
  void take(int chunk, std::size_t num_rows, const compute::Segment& segment, std::size_t request);

  ReplayFile& file_;
  int place_;
  int members_;
  RequestRows requests_;
  std::size_t num_layers_;           // MoE
  std::vector<int> index_of_layer_;  // [layers], -1: dense
  std::vector<Source> sources_;      // [requests]
  std::vector<Chosen> chosen_;       // [chunks * MoE layers]
  std::unordered_map<std::size_t, Ahead> ahead_;
};

}  // namespace atl
