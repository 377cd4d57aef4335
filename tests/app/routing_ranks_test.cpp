// ranks: 1 2 3 5
// timeout: 120
//
// Routing that is recorded is the oracle's, whatever the ranks and chunks; choices that are
// replayed are followed, and their results are the oracle's that follows them too.
#include <gtest/gtest.h>

#include <fstream>
#include <optional>

#include "app/run/driver.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/request_queue.hpp"
#include "app/run/routing_record.hpp"
#include "app/run/routing_replay.hpp"
#include "tests/compute/model_checks.hpp"
#include "tests/mpi_main.hpp"
#include "tests/shared_folder.hpp"
#include "tests/tiny_model.hpp"

namespace atl {
namespace {

using testing::Random;

constexpr std::uint64_t model_identity = 0x1234;

/// Prompts to be scored by a random model on all ranks, with records and replays.
class RoutingRun {
 public:
  RoutingRun()
      : world_(comm::Communicator::world()),
        folder_(world_),
        model_(testing::random_model(testing::tiny_shape(), DType::float32, 29)) {
    for (int r = 0; r < 9; ++r) {
      io::Request& request = requests_.emplace_back();
      request.id = "request " + std::to_string(r);
      request.tokens =
          Random(static_cast<unsigned>(r), DType::float32).tokens(1 + 13 * r % 40, shape().vocab);
    }
    requests_[4].error = "refused";
    batch_.mode = Mode::score;
    batch_.max_sequences = 3;
    batch_.max_pass_tokens = 24;  // prompts are cut
    batch_.min_chunk_tokens = 1;
    batch_.max_chunks = 3;
    batch_.num_pages = 8;
    batch_.dtype = DType::float32;
    compute::BackendOptions options;
    options.shape = shape();
    options.dtype = DType::float32;
    placement_ = even_placement(shape(), one_node(world_.size()));
    options.part = placement_.part_of(world_.rank(), shape(), one_node(world_.size()));
    options.num_pages = batch_.num_pages;
    options.max_chunk_tokens = batch_.max_pass_tokens;
    backend_ = compute::make_cpu_backend(options);
    compute::for_each_weight(
        shape(), options.part, [&](const compute::WeightInfo& info, int expert, int local_expert) {
          const auto bytes =
              testing::encode(testing::weight_values(model_, info, expert), DType::float32);
          backend_->load_weight(info.id, info.layer, local_expert,
                                {bytes.data(), DType::float32, info.rows, info.cols});
        });
    backend_->finish_loading();
  }

  const ModelShape& shape() const { return model_.shape; }
  const reference::Model& model() const { return model_; }
  const std::vector<io::Request>& requests() const { return requests_; }
  RequestRows rows() const {
    std::vector<std::string> names;
    for (const io::Request& request : requests_) names.push_back(io::name_of(request));
    return request_rows(ListedRequests(requests_), names, Mode::score, 1);
  }
  std::string file(const std::string& name) const { return folder_ / name; }
  const comm::Communicator& world() const { return world_; }

  /// Collective: scores all requests with so many chunks; the log-probabilities of each that this
  /// rank has served, else empty.
  std::vector<std::vector<float>> run(int chunks, const std::string& record,
                                      const std::string& replay = "") {
    std::optional<RoutingRecord> recorded;
    std::optional<ReplayFile> replay_file;
    std::optional<RoutingReplay> replayed;
    DriverOptions options;
    options.num_chunks = chunks;
    options.row_bytes = static_cast<std::size_t>(shape().hidden) * 4;
    options.mode = Mode::score;
    options.max_chunk_tokens = batch_.max_pass_tokens;
    recorded.emplace(file(record), routing_layout(shape(), model_identity, rows()), world_,
                     shape().num_layers, chunks, false, std::vector<Kept>());
    options.save_choices = [&](int chunk, int layer, std::size_t tokens) {
      return recorded->place(chunk, layer, tokens);
    };
    if (!replay.empty()) {
      replay_file.emplace(file(replay), world_, shape(), model_identity);
      replayed.emplace(*replay_file, rows(), shape(), chunks);
      options.forced = [&](int chunk, int layer) { return replayed->of(chunk, layer); };
    }
    BatchOptions batch = batch_;
    batch.max_chunks = chunks;
    Timeline timeline(world_.size(), 0, 0);
    const Groups groups(world_,
                        JobLayout({}, std::vector<int>(static_cast<std::size_t>(world_.size()))),
                        /*nodes=*/false);
    Driver driver(*backend_, groups, shape(), placement_, options, timeline);
    ListedRequests requests(requests_);
    const auto needs = needs_of(requests, true, shape().max_positions, world_.size(), batch);
    Batcher batcher(batch, room_for(needs, batch));
    RequestQueue queue(requests, {}, batch, "");
    std::vector<RankLoad> loads(static_cast<std::size_t>(world_.size()));
    for (;;) {
      world_.allgather_into(batcher.load(), std::span(loads));
      for (RequestQueue::Grant& grant : queue.grant(loads)) {
        if (grant.rank == world_.rank()) batcher.take_up(std::move(grant.admitted));
      }
      if (!batcher.next_pass(loads)) break;
      timeline.begin_pass(Phase::prefill, driver.schedule(batcher.num_chunks(), {}), 0, 0);
      if (replayed) replayed->prepare(batcher);
      driver.run_pass(batcher, {});
      recorded->take(batcher);
      timeline.end_pass(batcher.finish_pass(0));
      recorded->finish(batcher.finished());
      if (replayed) replayed->finish(batcher.finished());
    }
    recorded->close();
    std::vector<std::vector<float>> scores(requests_.size());
    for (const FinishedRequest& done : batcher.finished()) {
      scores[static_cast<std::size_t>(done.request)] = done.result.logprobs;
    }
    return scores;
  }

 private:
  comm::Communicator world_;
  SharedFolder folder_;
  reference::Model model_;
  std::vector<io::Request> requests_;
  BatchOptions batch_;
  Placement placement_;
  std::unique_ptr<compute::Backend> backend_;
};

/// The filled rows of a request are these choices; weights too where they are recorded.
void expect_rows(io::RoutingReader& reader, std::size_t request,
                 const reference::Routing& routing) {
  const auto& layers = reader.layout().layers;
  const auto top_k = static_cast<std::size_t>(reader.layout().top_k);
  const std::size_t rows = routing[static_cast<std::size_t>(layers[0])].size();
  ASSERT_EQ(reader.num_rows(request), static_cast<std::int64_t>(rows)) << request;
  std::vector<std::int32_t> experts(rows * layers.size() * top_k);
  std::vector<float> weights(experts.size());
  reader.read(request, 0, static_cast<std::int64_t>(rows), experts, weights);
  for (std::size_t at = 0; at < experts.size(); ++at) {
    const auto layer = static_cast<std::size_t>(layers[at / top_k % layers.size()]);
    const auto& choice = routing[layer][at / top_k / layers.size()][at % top_k];
    ASSERT_EQ(experts[at], choice.expert) << "request " << request << ", entry " << at;
    ASSERT_NEAR(weights[at], choice.weight, 1e-4) << "request " << request << ", entry " << at;
  }
}

std::vector<char> bytes_of(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TEST(Routing, IsRecordedAsTheOracleChooses) {
  RoutingRun run;
  run.run(1, "one.h5");
  run.run(3, "three.h5");
  if (run.world().rank() != 0) return;
  EXPECT_EQ(bytes_of(run.file("one.h5")), bytes_of(run.file("three.h5")));
  io::RoutingReader reader(run.file("three.h5"));
  for (std::size_t r = 0; r < run.requests().size(); ++r) {
    if (!run.requests()[r].error.empty()) {
      EXPECT_EQ(reader.num_rows(r), 0);
      continue;
    }
    reference::Routing routing;
    reference::logits(run.model(), run.requests()[r].tokens, reference::exact, nullptr, &routing);
    expect_rows(reader, r, routing);
    io::RoutingSummer summer;
    std::vector<std::int32_t> experts(
        static_cast<std::size_t>(reader.num_rows(r) * reader.layout().row_choices()));
    std::vector<float> weights(experts.size());
    reader.read(r, 0, reader.num_rows(r), experts, weights);
    summer.add(std::vector<std::uint16_t>(experts.begin(), experts.end()), weights);
    EXPECT_EQ(reader.sums(r), summer.sums());
  }
}

TEST(Routing, IsReplayedAsTheOracleFollows) {
  RoutingRun run;
  std::vector<reference::Forced> forced(run.requests().size());
  if (run.world().rank() == 0) {
    const auto layout = routing_layout(run.shape(), model_identity, run.rows());
    io::create_routing_file(run.file("made.h5"), layout);
  }
  for (std::size_t r = 0; r < forced.size(); ++r) {
    forced[r].choices = testing::made_choices(run.shape(), run.requests()[r].tokens.size());
  }
  run.world().agree([&] {
    if (run.world().rank() != 0) return;
    const auto layout = routing_layout(run.shape(), model_identity, run.rows());
    io::RoutingWriter writer(run.file("made.h5"), layout);
    for (std::size_t r = 0; r < forced.size(); ++r) {
      if (!run.requests()[r].error.empty()) continue;
      std::vector<std::uint16_t> experts;
      std::vector<float> weights;
      for (std::size_t t = 0; t < run.requests()[r].tokens.size(); ++t) {
        for (const int layer : layout.layers) {
          for (const auto& choice : forced[r].choices[static_cast<std::size_t>(layer)][t]) {
            experts.push_back(static_cast<std::uint16_t>(choice.expert));
            weights.push_back(static_cast<float>(choice.weight));
          }
        }
      }
      writer.write(r, 0, experts, weights);
      io::RoutingSummer summer;
      summer.add(experts, weights);
      writer.set_rows(r, static_cast<std::int64_t>(run.requests()[r].tokens.size()), summer.sums());
    }
    io::finish_routing_file(run.file("made.h5"));
  });
  const auto scores = run.run(3, "again.h5", "made.h5");
  for (std::size_t r = 0; r < scores.size(); ++r) {
    const auto& tokens = run.requests()[r].tokens;
    if (scores[r].empty()) continue;  // of another rank
    const auto wanted = reference::log_probs(run.model(), tokens, reference::exact, &forced[r]);
    ASSERT_EQ(scores[r].size() + 1, tokens.size());
    for (std::size_t t = 0; t + 1 < tokens.size(); ++t) {
      EXPECT_NEAR(scores[r][t], wanted[t][static_cast<std::size_t>(tokens[t + 1])], 1e-4)
          << "request " << r << ", token " << t;
    }
  }
  if (run.world().rank() == 0) {
    io::RoutingReader reader(run.file("again.h5"));
    for (std::size_t r = 0; r < forced.size(); ++r) {
      if (run.requests()[r].error.empty()) expect_rows(reader, r, forced[r].choices);
    }
  }
}

}  // namespace
}  // namespace atl
