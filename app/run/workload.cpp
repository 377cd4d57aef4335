#include "app/run/workload.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "app/run/broadcast_requests.hpp"
#include "app/run/isa.hpp"
#include "app/run/request_needs.hpp"
#include "app/run/written_files.hpp"

namespace atl {

namespace {

constexpr int byte_vocab = 256;  // ids are bytes

}  // namespace

Workload::Workload(const comm::Communicator& world, const RunOptions& options)
    : results(world),
      checkpoints(world, options),
      world_(world),
      options_(options),
      mode_(options.mode) {
  if (!options.shard.empty()) shard_ = shard_of(options.shard);
}

void Workload::read(const OpenModel& model, const BackendChoice& choice,
                    const std::string& replay) {
  const ModelShape& shape = model.config.shape;
  world_.agree([&] {
    if (root()) read_files(shape);
  });
  requests_ = broadcast_requests(world_, std::move(requests_));
  arithmetic_ = {choice.name(), "", choice.devices};
  choose_isa(choice.cuda, model);
  identity_ = identity_of(options_, model.file->identity(), model.dtype, arithmetic_, requests_);
  if (!replay.empty()) identity_["replay-routing"] = replay;
  if (shard_) take_shard();
  if (nothing_to_do_) return;
  const auto finished =
      results.begin(requests_, identity_, options_.resume, mode_, shape.vocab == byte_vocab);
  kept_.resize(requests_.size());
  for (std::size_t i = 0; i < finished.size(); ++i) kept_[i].finished = finished[i];
  if (root() && options_.resume) {
    fmt::print(stderr, "resuming: {} of {} requests are finished\n", results.num_finished(),
               requests_.size());
  }
  if (requests_.empty()) return leave_empty_part();
  checkpoints.open(identity_, requests_, shape, model.dtype, kept_);
}

/// On rank 0. What is written is opened now, so that hours of work are not lost to a mistyped path.
void Workload::read_files(const ModelShape& shape) {
  io::RequestLimits limits;
  limits.vocab = shape.vocab;
  limits.max_positions = shape.max_positions;
  limits.default_max_tokens = options_.max_tokens;
  limits.scoring = mode_ == Mode::score;
  limits.seed = options_.seed;
  const std::string output = written(options_.output);
  require_separate_files(options_, output);
  requests_ = io::read_requests(options_.input, limits);
  results.open(output);
  if (!options_.report.empty()) report.emplace(options_.report);
  if (!options_.trace.empty()) io::TextFile(options_.trace);  // can be written
}

/// After results.open(): a resumed run computes as the run before did.
void Workload::choose_isa(bool cuda, const OpenModel& model) {
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
  const auto mine = [&model] {
    return compute::widest_cpu_isa_for(model.config.shape, model.dtype);
  };
  arithmetic_.isa = name_of(use_agreed_isa(world_, options_.isa, recorded, mine));
}

/// All ranks have read all requests, which the identity is of; from here on those of this shard are
/// all there are.
void Workload::take_shard() {
  const auto all = static_cast<std::int64_t>(requests_.size());
  std::string finished;
  world_.agree([&] {
    if (!root()) return;
    // A journal with results is of a run that has not come to its very end.
    if (options_.resume && results.num_finished() == 0) {
      finished = finished_before(options_.output, *shard_, identity_);
    }
    if (!finished.empty()) fmt::print(stderr, "nothing to do: {}\n", finished);
    results.make_part({identity_, *shard_, all});
  });
  nothing_to_do_ = !world_.broadcast(finished, 0).empty();
  keep_share(requests_, *shard_);
  identity_ = with_shard(identity_, *shard_);
}

/// A shard beyond the last request has none.
void Workload::leave_empty_part() {
  world_.agree([this] {
    if (!root()) return;
    results.write();
    results.remove_journal();
    fmt::print(stderr, "nothing to do: shard {} has no request\n", shard_->text());
  });
  nothing_to_do_ = true;
}

bool Workload::any_to_serve() const {
  return std::any_of(requests_.begin(), requests_.end(),
                     [](const io::Request& request) { return request.error.empty(); });
}

void Workload::refuse_beyond_cache(const BatchOptions& batch, const std::string& limit) {
  atl::refuse_beyond_cache(requests_, kept_, batch, limit);
}

}  // namespace atl
