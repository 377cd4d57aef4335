#include "app/run/workload.hpp"

#include <fmt/format.h>

#include "app/config_layout.hpp"
#include "app/run/isa.hpp"
#include "app/run/run_watch.hpp"
#include "app/run/written_files.hpp"

namespace atl {

using nlohmann::ordered_json;

Workload::Workload(const comm::Communicator& world, const RunOptions& options)
    : results(world),
      checkpoints(world, options),
      world_(world),
      options_(options),
      mode_(options.mode) {
  if (!options.shard.empty()) shard_ = shard_of(options.shard);
}

void Workload::read(const OpenModel& model, const BackendChoice& choice, const JobLayout& job,
                    const std::string& replay) {
  const ModelShape& shape = model.config.shape;
  model_identity_ = model.file->identity();
  dtype_ = model.dtype;
  world_.agree([&] {
    text_.emplace(*model.file, shape.vocab, /*encodes=*/root());
    if (!root()) return;
    read_files(shape);
    read_all_where_needed();
  });
  arithmetic_ = {choice.name(), "", choice.devices};
  choose_isa(choice.cuda, model, job);
  replay_ = replay;
  if (shard_) take_shard();
  if (nothing_to_do_) return;
  const IdentityLike identity = [this](const auto& recorded) { return identity_like(recorded); };
  const auto finished = results.begin(
      requests(), identity, options_.resume, mode_, *text_,
      [this](std::int64_t line) { return keeps(line); },
      /*whole_lines=*/!options_.control.empty());
  world_.agree([this] {
    if (root()) note_refused();
  });
  kept_.resize(finished.size());
  for (std::size_t i = 0; i < finished.size(); ++i) kept_[i].finished = finished[i];
  if (root() && options_.resume) {
    fmt::print(stderr, "resuming: {} of {} requests are finished\n", results.num_finished(),
               requests().size());
  }
  bool empty = false;
  world_.agree([&] { empty = root() && requests().size() == 0 && !source_->take_more(); });
  if (world_.broadcast_value(empty, 0)) return leave_empty_part();
  if (!options_.control.empty()) checkpoints.set_weights(model.weights());
  checkpoints.open(identity, requests(), shape, model.dtype, kept_);
  for (std::size_t i = 0; i < kept_.size(); ++i) {
    if (!keeps(static_cast<std::int64_t>(requests()[i].line))) kept_[i] = {};
  }
}

/// With Balance::bias what a prompt chose, and what offsets changed of it, is known of blocks in
/// the journal alone: of others all runs again.
bool Workload::keeps(std::int64_t line) const {
  if (!blocks) return true;
  const std::int64_t block = (line - 1) / options_.bias.block;
  const bool sampled = (line - 1) % options_.bias.sample == 0;
  return block < blocks->blocks() - (sampled ? 2 : 0);
}

const RequestList& Workload::requests() const {
  static const ListedRequests none({});
  if (source_) return *source_;
  return none;
}

bool Workload::has_rows() const {
  return !options_.dump_activations.empty() || !options_.record_routing.empty() ||
         !options_.replay_routing.empty();
}

RequestRows Workload::rows() const {
  if (!root()) return {};
  return request_rows(*source_, source_->names(), mode_, options_.max_tokens);
}

/// What a run resumes, or may not write over, can only be compared with all requests; and files of
/// activations and of choices have a place for each of them.
void Workload::read_all_where_needed() {
  if (options_.resume || has_rows() || !checkpoints.recorded().is_null()) source_->take_all();
}

ordered_json Workload::own_identity(const InputFacts& facts) const {
  ordered_json identity = identity_of(options_, model_identity_, dtype_, arithmetic_, facts);
  if (!replay_.empty()) identity["replay-routing"] = replay_;
  if (options_.balance == Balance::bias) {
    const BiasOptions& bias = options_.bias;
    identity["balance"] = fmt::format(
        "bias above {}, in blocks of {}, by {} at most, drift {} of every {}",
        options_.balance_when.above, bias.block, bias.max_bias, bias.max_drift, bias.sample);
  }
  if (options_.tp_output && compute::is_sum(*options_.tp_output)) {  // what changes bits
    const int tp = division_of(options_, world_.size()).tp;
    const bool rounded = *options_.tp_output == compute::OutputCut::sum_bf16;
    if (tp > 1) {
      identity["attention-summed-over-ranks"] = fmt::format("{}{}", tp, rounded ? ", in BF16" : "");
    }
  }
  return identity;
}

std::vector<Kept> Workload::shared_kept() const {
  std::string kept;
  for (const KeptProgress& of_request : kept_) kept.push_back(static_cast<char>(of_request.kept()));
  kept = world_.broadcast(kept, 0);
  std::vector<Kept> all;
  for (const char one : kept) all.push_back(static_cast<Kept>(one));
  return all;
}

ordered_json Workload::identity_like(const ordered_json& recorded) const {
  const std::string input = recorded.is_object() ? recorded.value("input", "") : "";
  const InputFacts facts = input.empty() ? source_->facts() : source_->facts_like(input);
  const ordered_json identity = own_identity(facts);
  return shard_ ? with_shard(identity, *shard_) : identity;
}

/// On rank 0. What is written is opened now, so that hours of work are not lost to a mistyped path.
void Workload::read_files(const ModelShape& shape) {
  io::RequestLimits limits;
  limits.vocab = shape.vocab;
  limits.max_positions = shape.max_positions;
  limits.index_beyond = shape.index_top_k > 0 && shape.max_positions == shape.index_top_k;
  limits.default_max_tokens = options_.max_tokens;
  limits.scoring = mode_ == Mode::score;
  limits.seed = options_.seed;
  limits.format = options_.format;
  limits.text = &*text_;
  const std::string output = written(options_.output);
  require_separate_files(options_, output);
  source_.emplace(options_.input, limits, shard_, has_rows(),
                  std::int64_t{options_.hold_requests} << 20);
  results.open(output);
  if (options_.balance == Balance::bias) blocks.emplace(output, options_.resume);
  if (!options_.report.empty()) report.emplace(options_.report);
  if (!options_.status.empty()) write_state(options_.status, "starting");
  if (!options_.trace.empty()) io::TextFile(options_.trace);  // can be written
}

/// After results.open(): a resumed run computes as the run before did.
void Workload::choose_isa(bool cuda, const OpenModel& model, const JobLayout& job) {
  if (cuda) {
    if (!options_.isa) return;
    throw comm::AgreedFailure("--isa is for CPUs, and this run takes CUDA; add --backend cpu", 2,
                              root());
  }
  std::string recorded;
  world_.agree([&] {
    if (!root() || !options_.resume) return;
    recorded = isa_of(results.recorded());
    if (recorded.empty()) recorded = isa_of(checkpoints.recorded());
  });
  const auto mine = [&] {
    const ModelShape& shape = model.config.shape;
    const auto place_in = [&](Share share) {
      return static_cast<int>(job.of(share).place_of[static_cast<std::size_t>(world_.rank())]);
    };
    const Division& division = job.division();
    return compute::widest_cpu_isa_for(
        shape, model.dtype,
        // Where memory decides, parts by columns are multiplied in any case.
        compute::share_attention(shape, division.tp, place_in(Share::owner),
                                 options_.tp_output.value_or(compute::OutputCut::columns)),
        compute::share_experts(shape, division.expert_tp, place_in(Share::holder)));
  };
  arithmetic_.isa = name_of(use_agreed_isa(world_, options_.isa, recorded, mine));
}

void Workload::take_shard() {
  std::string finished;
  world_.agree([&] {
    if (!root()) return;
    // A journal with results is of a run that has not come to its very end.
    if (options_.resume && results.num_finished() == 0) {
      finished = finished_before(options_.output, *shard_, own_identity(source_->facts()));
    }
    if (!finished.empty()) fmt::print(stderr, "nothing to do: {}\n", finished);
    results.make_part([this] {
      return PartFacts{own_identity(source_->facts()), *shard_, source_->num_taken()};
    });
  });
  nothing_to_do_ = !world_.broadcast(finished, 0).empty();
}

/// A shard beyond the last request has none.
void Workload::leave_empty_part() {
  world_.agree([this] {
    if (!root()) return;
    write_results();
    results.remove_journal();
    fmt::print(stderr, "nothing to do: shard {} has no request\n", shard_->text());
  });
  nothing_to_do_ = true;
}

void Workload::take_ready() {
  source_->take_ready();
  queue_->take_new();
  note_refused();
}

void Workload::write_results() {
  note_refused();
  results.write();
}

bool Workload::any_to_serve(const BatchOptions& batch, const std::string& limit) {
  bool any = false;
  world_.agree([&] {
    if (!root()) return;
    queue_.emplace(*source_, kept_, batch, limit, [this] {
      note_refused();
      return source_->take_more();
    });
    for (std::size_t i = 0; i < source_->size() && !any; ++i) any = requests()[i].usable == 1;
    any = any || queue_->wait_for_next();
  });
  return world_.broadcast_value(any, 0);
}

}  // namespace atl
