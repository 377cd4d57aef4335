#include "app/run/run.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>

#include "app/model/checked_config.hpp"
#include "app/model/load.hpp"
#include "app/model/model_config.hpp"
#include "app/run/activations.hpp"
#include "app/run/batcher.hpp"
#include "app/run/broadcast_requests.hpp"
#include "app/run/checkpoints.hpp"
#include "app/run/cluster.hpp"
#include "app/run/devices.hpp"
#include "app/run/driver.hpp"
#include "app/run/identity.hpp"
#include "app/run/isa.hpp"
#include "app/run/progress.hpp"
#include "app/run/report.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/results.hpp"
#include "app/run/shards.hpp"
#include "app/run/stop.hpp"
#include "app/run/written_files.hpp"
#include "comm/allotment.hpp"
#include "comm/topology.hpp"
#include "comm/transports/choice.hpp"
#include "comm/watchdog.hpp"
#include "io/json_shown.hpp"
#include "io/text_file.hpp"

namespace atl {

namespace {

constexpr int page_tokens = 64;
constexpr int byte_vocab = 256;                   // ids are bytes
constexpr std::size_t max_trace_events = 200000;  // per rank, about 100 bytes each on file
constexpr double kv_share_of_free_memory = 0.4;

/// Everything a job needs, set up in the order in which it can fail.
class Job {
 public:
  Job(const comm::Communicator& world, const RunOptions& options)
      : world_(world), options_(options), results_(world), checkpoints_(world, options) {
    if (!options.shard.empty()) shard_ = shard_of(options.shard);
  }

  void run() {
    comm::watched::stage("set-up", setup_deadlines * options_.deadline);
    open_model();
    find_ranks();
    read_requests();
    if (nothing_to_do_) return;
    find_links();
    size_batches();
    if (any_to_serve()) {
      load();
      steps();
    }
    finish();
  }

 private:
  bool root() const { return world_.rank() == 0; }

  void open_model() {
    world_.agree([this] {
      file_ = std::make_unique<io::ModelFileReader>(options_.model);
      config_ = checked_config(*file_);
      placement_ = contiguous_placement(config_.shape.num_experts, world_.size());
      if (!options_.dump_activations.empty()) {
        dumped_layers_ = layers_of(options_.dump_activations, config_.shape.num_layers);
      }
    });
    const std::uint64_t identity = file_->identity();
    const auto identities = world_.allgather(identity);
    world_.agree([&] {
      require(identity == identities[0],
              "{} on rank {} is not the file that rank 0 reads (its contents differ); give all "
              "ranks the same model file",
              options_.model, world_.rank());
    });
    mode_ = options_.mode;
    dtype_ = options_.dtype.value_or(config_.dtype);
  }

  void read_requests() {
    world_.agree([this] {
      if (!root()) return;
      io::RequestLimits limits;
      limits.vocab = config_.shape.vocab;
      limits.max_positions = config_.shape.max_positions;
      limits.default_max_tokens = options_.max_tokens;
      limits.scoring = mode_ == Mode::score;
      const std::string written = shard_ ? part_path(options_.output, *shard_) : options_.output;
      require_separate_files(options_, written);
      limits.seed = options_.seed;
      requests_ = io::read_requests(options_.input, limits);
      // Opened now, so that hours of work are not lost to a mistyped path.
      results_.open(written);
      if (!options_.report.empty()) report_.emplace(options_.report);
      if (!options_.trace.empty()) io::TextFile(options_.trace);  // can be written
    });
    requests_ = broadcast_requests(world_, std::move(requests_));
    choose_isa();
    identity_ = identity_of(options_, file_->identity(), dtype_,
                            {choice_.name(), isa_, choice_.devices}, requests_);
    if (shard_) take_shard();
    if (nothing_to_do_) return;
    const auto finished = results_.begin(requests_, identity_, options_.resume, mode_,
                                         config_.shape.vocab == byte_vocab);
    kept_.resize(requests_.size());
    for (std::size_t i = 0; i < finished.size(); ++i) kept_[i].finished = finished[i];
    if (root() && options_.resume) {
      fmt::print(stderr, "resuming: {} of {} requests are finished\n", results_.num_finished(),
                 requests_.size());
    }
    if (requests_.empty()) return leave_empty_part();
    checkpoints_.open(identity_, requests_, config_.shape, dtype_, kept_);
  }

  /// After results_.open(): a resumed run computes as the run before did.
  void choose_isa() {
    if (choice_.cuda) {
      if (!options_.isa) return;
      throw comm::AgreedFailure("--isa is for CPUs, and this run takes CUDA; add --backend cpu", 2,
                                root());
    }
    std::string recorded;
    world_.agree([&] {
      if (!root() || !options_.resume) return;
      recorded = isa_of(results_.recorded());
      if (recorded.empty()) recorded = isa_of(checkpoints_.recorded());
    });
    isa_ = name_of(use_agreed_isa(world_, options_.isa, recorded));
  }

  /// All ranks have read all requests, which the identity is of; from here on those of this shard
  /// are all there are.
  void take_shard() {
    const auto all = static_cast<std::int64_t>(requests_.size());
    std::string finished;
    world_.agree([&] {
      if (!root()) return;
      // A journal with results is of a run that has not come to its very end.
      if (options_.resume && results_.num_finished() == 0) {
        finished = finished_before(options_.output, *shard_, identity_);
      }
      if (!finished.empty()) fmt::print(stderr, "nothing to do: {}\n", finished);
      results_.make_part({identity_, *shard_, all});
    });
    nothing_to_do_ = !world_.broadcast(finished, 0).empty();
    keep_share(requests_, *shard_);
    identity_ = with_shard(identity_, *shard_);
  }

  /// A shard beyond the last request has none.
  void leave_empty_part() {
    world_.agree([this] {
      if (!root()) return;
      results_.write();
      results_.remove_journal();
      fmt::print(stderr, "nothing to do: shard {} has no request\n", shard_->text());
    });
    nothing_to_do_ = true;
  }

  void find_ranks() {
    topology_ = comm::discover_topology(world_);
    given_ = comm::find_allotment(world_, topology_);
    threads_ = options_.threads > 0 ? options_.threads : given_.mine.threads();
    choice_ = choose_backend(world_, topology_, options_.backend);
  }

  void find_links() {
    if (options_.measure_links || !options_.cluster.empty()) {
      cluster_ = find_cluster(world_, topology_, options_.cluster, options_.measure_links);
    }
  }

  void size_batches() {
    batch_.mode = mode_;
    batch_.max_tokens = options_.max_tokens;
    batch_.max_sequences = std::min(options_.max_sequences, static_cast<int>(requests_.size()));
    batch_.max_pass_tokens = std::max(options_.step_tokens, batch_.max_sequences);
    batch_.min_chunk_tokens = std::min(options_.min_chunk_tokens, batch_.max_pass_tokens);
    batch_.max_chunks = options_.chunks;
    batch_.page_tokens = page_tokens;
    batch_.stop_token_ids = config_.stop_token_ids;
    batch_.dtype = dtype_;
    set_backend_options();
    world_.agree([this] { batch_.num_pages = std::max<std::int64_t>(1, kv_pages()); });
    backend_options_.num_pages = batch_.num_pages;
    world_.agree([this] { reserve_for_any_routing(); });
    refuse_beyond_cache(requests_, kept_, batch_, kv_limit());
  }

  /// What the KV cache was sized by, for a message.
  std::string kv_limit() const {
    if (options_.kv_tokens > 0) return "as --kv-tokens says";
    if (choice_.cuda) return "what the memory of a GPU leaves beside the weights";
    const std::string& by = given_.mine.memory_by;
    return fmt::format("{:.0f} % of its memory{}{}", kv_share_of_free_memory * 100,
                       by.empty() ? "" : ", which is limited by ", by);
  }

  /// The same on all ranks: asked for, or what the requests can use and the memory allows.
  std::int64_t kv_pages() const {
    if (options_.kv_tokens > 0) return (options_.kv_tokens + page_tokens - 1) / page_tokens;
    std::int64_t largest = 1;
    std::int64_t all = 0;
    for (const io::Request& request : requests_) {
      if (!request.error.empty()) continue;
      const std::int64_t pages = pages_needed(request, batch_);
      largest = std::max(largest, pages);
      all += pages;
    }
    // An even share and one large request more: ranks differ in what they were given.
    const std::int64_t useful = std::max(largest, std::min(all, all / world_.size() + 2 * largest));
    std::int64_t allowed = choice_.cuda
                               ? automatic_pages(choice_, backend_options_, useful, largest)
                               : std::min(useful, pages_in_host_memory());
    world_.allreduce(std::span(&allowed, 1), comm::Communicator::Reduce::min);
    return allowed;
  }

  std::int64_t pages_in_host_memory() const {
    const ModelShape& shape = config_.shape;
    const std::int64_t page_bytes = std::int64_t{2} * page_tokens * shape.num_layers *
                                    shape.kv_width() * static_cast<std::int64_t>(size_of(dtype_));
    return static_cast<std::int64_t>(given_.mine.memory_bytes * kv_share_of_free_memory) /
           page_bytes;
  }

  /// Buffers for received rows never grow in a step, where memory is left beside all else.
  void reserve_for_any_routing() {
    const compute::BackendOptions most = for_any_routing(backend_options_);
    if (fits(choice_, most)) backend_options_ = most;
  }

  void set_backend_options() {
    const auto chunk_rows = (batch_.max_pass_tokens + options_.chunks - 1) / options_.chunks;
    compute::BackendOptions& options = backend_options_;
    options.shape = config_.shape;
    options.dtype = dtype_;
    options.part = placement_.part_of(world_.rank(), config_.shape);
    options.num_threads = threads_;
    options.page_tokens = page_tokens;
    options.max_chunk_tokens =
        std::min(batch_.max_pass_tokens, std::max(chunk_rows + 1, 2 * batch_.min_chunk_tokens));
    options.num_chunks = options_.chunks;
    // All that the others send goes to this rank's experts.
    options.most_receive_rows =
        std::int64_t{world_.size() - 1} * options.max_chunk_tokens *
        std::min<std::int64_t>(config_.shape.top_k, options.part.most_experts());
    // What an even routing brings, at least.
    options.receive_rows = std::min(options.most_receive_rows,
                                    std::int64_t{options.max_chunk_tokens} * config_.shape.top_k);
  }

  void load() {
    const double begin = now_seconds();
    const compute::BackendOptions& options = backend_options_;
    world_.agree([&] { backend_ = make_backend(choice_, options); });
    // Tried before the weights are read, which may take minutes.
    world_.agree([this] {
      transport_ = comm::choose_transport(world_, options_.transport, backend_->device_memory());
    });
    std::vector<NonFiniteSlab> non_finite;
    world_.agree(
        [&] { non_finite = load_weights(*file_, config_, options.part, dtype_, *backend_); });
    stored_non_finite_ = warn_of_non_finite(world_, *file_, dtype_, non_finite);
    DriverOptions driver;
    driver.num_chunks = options_.chunks;
    driver.overlap = !options_.no_overlap;
    driver.transport = transport_;
    driver.shares_cores = given_.mine.cores < 1;
    driver.row_bytes = static_cast<std::size_t>(config_.shape.hidden) * size_of(dtype_);
    driver.mode = mode_;
    driver.max_chunk_tokens = options.max_chunk_tokens;
    driver.max_head_rows = std::min(batch_.max_sequences, options.max_chunk_tokens);
    if (!dumped_layers_.empty()) open_dump(driver);
    timeline_.emplace(world_.size(), comm::clock_offset(world_, topology_),
                      options_.trace.empty() ? 0 : max_trace_events);
    batcher_.emplace(requests_, batch_, world_.rank(), kept_, checkpoints_.restore_into(*backend_));
    driver_.emplace(*backend_, world_, config_.shape, placement_, driver, *timeline_);
    load_seconds_ = now_seconds() - begin;
  }

  void steps() {
    const std::int64_t total = batcher_->waiting_work();
    comm::watched::stage("the steps", options_.deadline);
    Progress progress(root() ? options_.progress : ProgressStyle::none, total);
    std::vector<RankLoad> loads(static_cast<std::size_t>(world_.size()));
    const double start = now_seconds();
    double begin = start;
    for (std::int64_t pass = 0;; ++pass) {
      const double last_pass_seconds = now_seconds() - begin;
      begin = now_seconds();
      comm::watched::begin_pass(pass);
      world_.allgather_into(load_of_rank(), std::span(loads));
      const double agreed = now_seconds();
      results_.collect(loads);
      stop_if_asked(loads);
      checkpoints_.advance(loads, checkpoint_source(), last_pass_seconds);
      if (!batcher_->next_pass(loads)) break;
      timeline_->begin_pass(batcher_->has_prompt_tokens() ? Phase::prefill : Phase::decode,
                            driver_->schedule(batcher_->num_chunks()), begin, agreed);
      driver_->run_pass(*batcher_);
      if (dump_) dump_->write(*batcher_);
      timeline_->end_pass(batcher_->finish_pass(now_seconds() - start));
      results_.take(batcher_->finished());
      if (timeline_->full()) timeline_->flush(world_);
      std::int64_t left = batcher_->waiting_work();
      for (const RankLoad& load : loads) left += load.remaining_work;
      progress.update(total - left, now_seconds() - start);
    }
    comm::watched::end_pass();
    comm::watched::stage("the end", setup_deadlines * options_.deadline);
    checkpoints_.close();
    timeline_->flush(world_);
    progress.finish();
  }

  CheckpointSource checkpoint_source() const {
    return {&*batcher_, &*backend_, &driver_->traffic(), &placement_, &config_.shape, dtype_};
  }

  RankLoad load_of_rank() {
    RankLoad load = batcher_->load();
    load.stop_signal = stop_signal();
    load.checkpoint = checkpoints_.phase();
    load.result_bytes = results_.waiting_bytes();
    return load;
  }

  /// Between two steps, where all ranks see the same signals.
  void stop_if_asked(const std::vector<RankLoad>& loads) {
    const auto asked = std::find_if(loads.begin(), loads.end(),
                                    [](const RankLoad& load) { return load.stop_signal != 0; });
    if (asked == loads.end()) return;
    const std::string checkpoint = checkpoints_.write_now(checkpoint_source());
    std::string message;
    if (root()) {
      results_.sync();
      message = fmt::format(
          "stopped by {} (sent to rank {}); {} of {} requests are finished and kept{}{}; run again "
          "with --resume to go on",
          name_of_signal(asked->stop_signal), asked - loads.begin(), results_.num_finished(),
          requests_.size(), checkpoint.empty() ? "" : ", ", checkpoint);
    }
    throw comm::AgreedFailure(message, stopped_exit_code, root());
  }

  void open_dump(DriverOptions& driver) {
    auto layout = activation_layout(requests_, mode_, options_.max_tokens);
    layout.dtype = dtype_;
    layout.hidden = config_.shape.hidden;
    layout.layers = dumped_layers_;
    layout.model = fmt::format("{:016x}", file_->identity());
    dump_.emplace(options_.activations, layout, world_, options_.chunks);
    driver.save_x = [this](int chunk, int layer, std::size_t tokens) {
      return dump_->buffer(chunk, layer, tokens);
    };
  }

  /// Nothing is loaded for requests that are all refused.
  bool any_to_serve() const {
    return std::any_of(requests_.begin(), requests_.end(),
                       [](const io::Request& request) { return request.error.empty(); });
  }

  void finish() {
    const RequestSummary summary = results_.summary();
    nlohmann::json report;
    std::vector<std::vector<io::TraceEvent>> events;
    if (driver_) {
      if (dump_) dump_->close();
      report = report_of_steps(summary);
      if (!options_.trace.empty()) {
        events = world_.gather_vectors(std::span(timeline_->trace()), 0);
      }
    }
    world_.agree([&] {
      if (!root()) return;
      results_.write();
      fmt::print(stderr, "{}", failures_line(summary, dtype_, stored_non_finite_));
      if (driver_) {
        if (report_) {
          report_->write(io::json_text(report, 1) + "\n");
          report_->close();
        }
        if (!options_.trace.empty()) write_trace(events);
        fmt::print("{}", summary_table(report));
        require(std::fflush(stdout) == 0, "cannot write the table of speeds to standard output");
      }
      results_.remove_journal();
      results_.require_served();
    });
  }

  /// Collective; on rank 0 the report.
  nlohmann::json report_of_steps(const RequestSummary& summary) const {
    RunFacts facts;
    facts.options = &options_;
    facts.config = &config_;
    facts.placement = &placement_;
    facts.topology = &topology_;
    facts.given = &given_;
    facts.cluster = cluster_ ? &*cluster_ : nullptr;
    facts.backend = backend_->description();
    facts.isa = isa_;
    facts.transport = name_of(transport_);
    facts.model_identity = file_->identity();
    facts.schedule_hash = driver_->schedule(options_.chunks).hash();
    facts.threads = threads_;
    facts.dtype = dtype_;
    facts.mode = mode_;
    RankMeasurements mine;
    mine.timeline = &*timeline_;
    mine.traffic = &driver_->traffic();
    mine.memory = backend_->memory();
    mine.bytes_read = file_->bytes_read();
    mine.load_seconds = load_seconds_;
    mine.checkpoints = checkpoints_.cost();
    return gather_report(world_, facts, mine, summary);
  }

  void write_trace(const std::vector<std::vector<io::TraceEvent>>& events) const {
    const auto step_of = [](const io::TraceEvent& event) {
      return Step{static_cast<StepKind>(event.kind), event.layer, event.chunk, {}};
    };
    io::write_trace(
        options_.trace, events, [&](const io::TraceEvent& e) { return step_of(e).name(); },
        [&](const io::TraceEvent& e) { return is_exchange(step_of(e).kind); },
        backend_->stream_names());
    if (timeline_->dropped_trace_events() > 0) {
      fmt::print(stderr,
                 "the trace keeps the first {} steps of each rank; {} later ones on rank 0 "
                 "are not in it\n",
                 max_trace_events, timeline_->dropped_trace_events());
    }
  }

  const comm::Communicator& world_;
  const RunOptions& options_;
  Mode mode_ = Mode::generate;
  DType dtype_ = DType::bfloat16;
  std::unique_ptr<io::ModelFileReader> file_;
  ModelConfig config_;
  Placement placement_;
  comm::Topology topology_;
  std::optional<Cluster> cluster_;
  comm::Allotment given_;
  int threads_ = 1;
  comm::TransportKind transport_ = comm::TransportKind::ialltoallv;
  std::optional<Shard> shard_;
  bool nothing_to_do_ = false;
  std::vector<io::Request> requests_;
  std::vector<int> dumped_layers_;
  std::optional<ActivationDump> dump_;
  std::vector<KeptProgress> kept_;  // [requests]
  nlohmann::ordered_json identity_;
  ResultStore results_;
  Checkpoints checkpoints_;
  std::optional<io::TextFile> report_;
  BackendChoice choice_;
  std::string isa_;  // of the CPU; empty on CUDA
  BatchOptions batch_;
  compute::BackendOptions backend_options_;
  std::unique_ptr<compute::Backend> backend_;
  std::optional<Timeline> timeline_;
  std::optional<Batcher> batcher_;
  std::optional<Driver> driver_;
  bool stored_non_finite_ = false;  // weights on file; known on rank 0
  double load_seconds_ = 0;
};

}  // namespace

void run_job(const comm::Communicator& world, const RunOptions& options) {
  Job(world, options).run();
}

}  // namespace atl
