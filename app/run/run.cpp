#include "app/run/run.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <system_error>
#include <vector>

#include "app/run/auto_layout.hpp"
#include "app/run/groups.hpp"
#include "app/run/load_stage.hpp"
#include "app/run/memory_fit.hpp"
#include "app/run/open_model.hpp"
#include "app/run/passes.hpp"
#include "app/run/placement_file.hpp"
#include "app/run/ranks.hpp"
#include "app/run/report.hpp"
#include "app/run/request_rows.hpp"
#include "app/run/route.hpp"
#include "app/run/routing_replay.hpp"
#include "app/run/show_layout.hpp"
#include "app/run/sizes.hpp"
#include "app/run/stage_model.hpp"
#include "app/run/startup.hpp"
#include "app/run/weight_updates.hpp"
#include "app/run/workload.hpp"
#include "app/run/written_files.hpp"
#include "comm/transports/choice.hpp"
#include "comm/watchdog.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::json;

namespace {

/// Everything a job needs, set up in the order in which it can fail.
class Job {
 public:
  Job(const comm::Communicator& world, const RunOptions& options, const Wrap& wrap)
      : world_(world), options_(options), wrap_(wrap), work_(world, options) {}

  void run() {
    comm::watched::stage("set-up", setup_deadlines * options_.deadline);
    open_model();
    ranks_ = find_ranks(world_, options_);
    if (!place()) return;
    open_replay();
    work_.read(model_, ranks_.choice, job_, replay_file_ ? replay_file_->identity() : "");
    if (work_.nothing_to_do()) return say_finished();
    find_links(world_, options_, ranks_);
    sizes_ = sizes_of(
        world_, options_,
        {model_, placement_, job_, ranks_, work_.requests(), work_.all_read(), work_.mode()});
    if (work_.any_to_serve(sizes_.batch, kv_limit(options_, ranks_))) {
      prepare_replay();
      load();
      passes_->run();
    }
    finish();
    if (!passes_) say_finished();
  }

 private:
  bool root() const { return world_.rank() == 0; }

  /// In the status file, where no passes did.
  void say_finished() {
    world_.agree([this] {
      if (root() && !options_.status.empty()) write_state(options_.status, "finished");
    });
  }

  void open_model() {
    const double begin = now_seconds();
    model_ = OpenModel(world_, staged_model(world_, options_), options_.dtype);
    startup_.open_s = now_seconds() - begin;
    world_.agree([this] {
      const ModelShape& shape = model_.config.shape;
      if (!options_.dump_activations.empty()) {
        dumped_layers_ = layers_of(options_.dump_activations, shape.num_layers);
      }
    });
  }

  /// False where the layout was only to be shown.
  bool place() {
    std::vector<Division> divisions;
    if (options_.layout == "auto") {
      divisions = {planned_division(world_, options_, model_, ranks_)};
    }
    world_.agree([&] {
      if (divisions.empty()) {
        divisions = open_divisions(options_, model_.config.shape, world_.size());
      }
      divide(divisions.front());
    });
    std::int64_t lacking = lacking_rank();
    for (std::size_t next = 1; lacking < world_.size() && next < divisions.size(); ++next) {
      world_.agree([&] { divide(divisions[next]); });
      lacking = lacking_rank();
    }
    if (lacking < world_.size()) {
      world_.agree([&] { divide(divisions.front()); });
      lacking = lacking_rank();
    }
    world_.agree([&] {
      if (options_.show_layout) {
        if (root()) fmt::print("{}", layout_text(options_, divided(), ranks_.memory()));
      } else if (lacking == world_.rank()) {
        fail("{}", does_not_fit(options_, divided(), needs_.plan, ranks_.memory()));
      }
      if (root() && job_.division() != divisions.front()) say_experts_are_shared();
    });
    return !options_.show_layout;
  }

  void divide(const Division& division) {
    const ModelShape& shape = model_.config.shape;
    require_divides(division, shape);
    job_ = JobLayout(division, options_.node_ranks.empty()
                                   ? ranks_.topology.node_of
                                   : nodes_of_ranks(options_.node_ranks, world_.size()));
    placement_ = placement_of(options_, shape, job_.exchange_of(world_.rank()));
  }

  DividedModel divided() const { return {model_.config.shape, model_.dtype, job_}; }

  /// Collective: the first rank whose part does not fit; their number where all do.
  std::int64_t lacking_rank() {
    std::int64_t lacking = world_.size();
    world_.agree([&] {
      const RankMemory memory = ranks_.memory();
      if (memory.bytes <= 0) return;
      needs_ = needs_of_rank(options_, divided(), world_.rank(), memory.cuda);
      if (static_cast<double>(must_fit(needs_.plan, memory)) > memory.bytes)
        lacking = world_.rank();
    });
    world_.allreduce(std::span(&lacking, 1), comm::Communicator::Reduce::min);
    return lacking;
  }

  void say_experts_are_shared() const {
    fmt::print(stderr,
               "--expert-tp {}: each expert is cut over so many ranks, since with fewer a rank's "
               "part does not fit into {}\n",
               job_.division().expert_tp,
               gigabytes(static_cast<std::int64_t>(ranks_.memory().bytes)));
  }

  void open_replay() {
    if (options_.replay_routing.empty()) return;
    comm::watched::stage("reading the routing to replay", 0);
    replay_file_.emplace(options_.replay_routing, world_, model_.config.shape,
                         model_.file->identity());
    comm::watched::stage("set-up", setup_deadlines * options_.deadline);
  }

  void prepare_replay() {
    if (!replay_file_) return;
    const RequestRows rows = shared_request_rows(world_, work_.rows());
    world_.agree([&] {
      const compute::AttentionShare& share = sizes_.backend.part.attention;
      replay_.emplace(*replay_file_, rows, model_.config.shape, sizes_.num_chunks(), share.place,
                      share.members);
    });
    if (!root()) return;
    const int left_out = replay_file_->columns() - replay_file_->top_k();
    fmt::print(stderr, "replaying the experts' choices of {}, with {} weights{}\n",
               replay_file_->path(), replay_file_->weights(),
               left_out == 0 ? "" : fmt::format("; its last {} of a token are left out", left_out));
  }

  void load() {
    const double begin = now_seconds();
    world_.agree([this] {
      backend_ = make_backend(ranks_.choice, sizes_.backend);
      if (wrap_) backend_ = wrap_(std::move(backend_), sizes_.backend);
    });
    // Tried before the weights are read, which may take minutes.
    world_.agree([this] { choose_transport(); });
    const double begin_of_weights = now_seconds();
    const StageBackend stage{world_, ranks_.topology, job_, sizes_.backend.part, *backend_};
    const LoadedModel loaded = load_stage(stage, model_);
    startup_.weights_s = now_seconds() - begin_of_weights;
    startup_.load = loaded.cost;
    stored_non_finite_ = warn_of_non_finite(world_, *model_.file, model_.dtype, loaded.non_finite);
    if (!options_.control.empty()) updates_.emplace(options_.control, stage, model_);
    groups_.emplace(world_, job_, may_take(options_, job_, Route::nodes));
    passes_.emplace(PassesInput{world_, options_, model_, placement_, *groups_, ranks_, sizes_,
                                dumped_layers_, replay_ ? &*replay_ : nullptr,
                                updates_ ? &*updates_ : nullptr, transport_.kind, *backend_,
                                work_});
    load_seconds_ = now_seconds() - begin;
  }

  void choose_transport() {
    comm::TransportSearch search;
    search.wanted = options_.transport;
    search.device = backend_->device_memory();
    search.note = transport_note(options_);
    transport_ = comm::find_transport(world_, search);
    if (root()) fmt::print(stderr, "{}", transport_.left_out);
  }

  void finish() {
    const RequestSummary summary = work_.results.summary();
    json report;
    std::vector<std::vector<io::TraceEvent>> events;
    if (passes_) {
      passes_->close_dump();
      passes_->close_record();
      report = gather_report(world_, facts(), measurements(), summary);
      const json routing = passes_->routing_report();
      if (!routing.is_null()) report["routing"] = routing;
      const json prefixes = passes_->prefix_report();
      if (root()) report["prefixes"] = prefixes;
      const json speculation = passes_->speculation_report();
      if (root()) report["speculation"] = speculation;
      const json balance = passes_->balance_report();
      if (root()) report["balance"] = balance;
      if (root() && updates_) report["updates"] = updates_->report();
      if (passes_->first_admitted_at() > 0) {
        startup_.first_admitted_s = passes_->first_admitted_at() - begin_;
      }
      startup_.peak_memory_bytes = peak_memory_bytes();
      const json startup = gather_startup(world_, startup_, *model_.file, ranks_);
      if (root()) report["startup"] = startup;
      events = passes_->gather_trace();
    }
    // Flushing to a busy disk may take a minute; all ranks know then what rank 0 is at.
    comm::watched::stage("writing the results", setup_deadlines * options_.deadline);
    world_.agree([&] {
      if (!root()) return;
      work_.write_results();
      const bool stored = stored_non_finite_ || (updates_ && updates_->stored_non_finite());
      fmt::print(stderr, "{}", failures_line(summary, model_.dtype, stored));
      if (passes_) {
        if (work_.report) {
          work_.report->write(io::json_text(report, 1) + "\n");
          work_.report->close();
        }
        passes_->write_trace(events);
        // Whoever reads results from standard output reads nothing else there.
        std::FILE* const place = work_.results.on_standard_output() ? stderr : stdout;
        fmt::print(place, "{}", summary_table(report));
        require(std::fflush(place) == 0, "cannot write the table of speeds");
      }
      work_.results.remove_journal();
      if (work_.blocks) work_.blocks->remove();
      std::error_code ignored;
      std::filesystem::remove(transport_note(options_), ignored);
      work_.results.require_served();
    });
    comm::watched::stage("the end", setup_deadlines * options_.deadline);
  }

  RunFacts facts() const {
    RunFacts facts;
    facts.options = &options_;
    facts.config = &model_.config;
    facts.placement = &passes_->driver().placement();
    facts.job = &job_;
    facts.topology = &ranks_.topology;
    facts.given = &ranks_.given;
    facts.cluster = ranks_.cluster ? &*ranks_.cluster : nullptr;
    facts.backend = backend_->description();
    facts.isa = work_.arithmetic().isa;
    facts.transport = &transport_;
    facts.model_identity = model_.file->identity();
    facts.schedule_hash = passes_->schedule_hash();
    facts.most_chunks = sizes_.batch.max_chunks;
    facts.ways = passes_->ways();
    facts.output = sizes_.backend.part.attention.output;
    facts.passes_by_output = passes_->passes_by_output();
    facts.threads = ranks_.threads;
    facts.dtype = model_.dtype;
    facts.mode = work_.mode();
    return facts;
  }

  RankMeasurements measurements() const {
    RankMeasurements mine;
    mine.timeline = &passes_->timeline();
    mine.traffic = &passes_->driver().traffic();
    mine.memory = backend_->memory();
    mine.bytes_read = startup_.load.bytes_read;
    mine.load_seconds = load_seconds_;
    mine.checkpoints = work_.checkpoints.cost();
    mine.energy = &passes_->energy();
    return mine;
  }

  const comm::Communicator& world_;
  const RunOptions& options_;
  const Wrap& wrap_;
  Workload work_;
  OpenModel model_;
  JobLayout job_;
  Placement placement_;
  std::optional<Groups> groups_;
  std::vector<int> dumped_layers_;
  std::optional<ReplayFile> replay_file_;
  std::optional<RoutingReplay> replay_;
  Ranks ranks_;
  RankNeeds needs_;  // of this rank, at least
  Sizes sizes_;
  std::unique_ptr<compute::Backend> backend_;
  comm::TransportChoice transport_;
  std::optional<WeightUpdates> updates_;
  std::optional<Passes> passes_;
  bool stored_non_finite_ = false;  // weights on file; known on rank 0
  const double begin_ = now_seconds();
  double load_seconds_ = 0;
  Startup startup_;
};

}  // namespace

void run_job(const comm::Communicator& world, const RunOptions& options, const Wrap& wrap) {
  Job(world, options, wrap).run();
}

}  // namespace atl
