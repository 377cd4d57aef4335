#include "app/run/checkpoints.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>

#include "app/run/run.hpp"
#include "comm/watchdog.hpp"
#include "compute/clock.hpp"
#include "compute/error.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::ordered_json;

namespace {

/// That a sequence of a checkpoint is one that its request can have.
void require_possible(const io::CheckpointSequence& s, const RequestList& requests, bool scoring,
                      const std::string& path) {
  if (s.is_beginning()) return;
  const bool known = s.request < static_cast<std::int64_t>(requests.size());
  const RequestEntry request =
      known ? requests[static_cast<std::size_t>(s.request)] : RequestEntry();
  const std::int64_t prompt = request.prompt_tokens;
  const std::int64_t length = prompt + s.generated;
  // A continuation is scored from somewhere on.
  const bool all_scored =
      s.logprobs == s.positions() || (request.continuation == 1 && s.logprobs < s.positions());
  const std::int64_t of_prompt =
      request.scores_prompt == 1 ? std::min(s.positions(), prompt - 1) : 0;
  const bool good = known && s.positions() < length && s.tops <= s.logprobs * most_tops &&
                    (scoring ? s.generated == 0 && all_scored
                             : s.logprobs == of_prompt + s.generated &&
                                   (s.generated == 0 || s.positions() == length - 1));
  require(good, "cannot read {}: {} tokens cached and {} generated cannot be those of request {}",
          path, s.positions(), s.generated, s.request);
}

}  // namespace

Checkpoints::Checkpoints(const comm::Communicator& world, const RunOptions& options)
    : world_(world),
      options_(options),
      folder_(options.checkpoint_dir),
      policy_(interval_of(options.checkpoint_every)) {}

void Checkpoints::open(const IdentityLike& identity, const RequestList& requests,
                       const ModelShape& shape, DType dtype, std::vector<KeptProgress>& kept) {
  identity_ = identity;
  if (folder_.empty()) return;
  world_.agree([this] {
    if (root()) folder_.create();
  });
  world_.agree([this] {
    require(std::filesystem::is_directory(folder_.path()),
            "--checkpoint-dir {} is not a folder that rank {} sees; give one that all ranks share",
            folder_.path(), world_.rank());
  });
  if (options_.resume) find(requests, shape, dtype, kept);
  std::int64_t number = 0;
  world_.agree([&] {
    if (root()) number = folder_.take_over(identity_, options_.resume);
  });
  world_.allreduce(std::span(&number, 1), comm::Communicator::Reduce::max);
  pass_ = std::max(pass_, number);
  policy_.start_at(pass_);
}

bool Checkpoints::try_checkpoint(const std::string& path, const RequestList& requests,
                                 const ModelShape& shape, DType dtype) {
  try {
    world_.agree([&] {
      reader_ = std::make_unique<io::CheckpointReader>(path);
      state_of(*reader_);
    });
  } catch (const comm::AgreedFailure& failure) {
    if (root()) fmt::print(stderr, "not used: {}\n", failure.what());
    reader_.reset();
    return false;
  }
  const ordered_json state = state_of(*reader_);
  world_.agree([&] {
    if (root()) require_own(path, state, identity_);
  });
  try {
    world_.agree([&] {
      const io::CheckpointContents& c = reader_->contents();
      require(c.num_layers == shape.num_layers && c.row_elements() == kv_half_row(shape) &&
                  c.dtype == dtype,
              "cannot read {}: its keys have another shape than the model's", path);
      for (const auto& s : c.sequences) {
        if (root()) require_possible(s, requests, options_.mode == Mode::score, path);
      }
      reader_->verify(static_cast<std::size_t>(world_.rank()),
                      static_cast<std::size_t>(world_.size()));
    });
  } catch (const comm::AgreedFailure& failure) {
    if (root()) fmt::print(stderr, "not used: {}\n", failure.what());
    reader_.reset();
    return false;
  }
  pass_ = state.at("step").get<std::int64_t>();
  return true;
}

void Checkpoints::find(const RequestList& requests, const ModelShape& shape, DType dtype,
                       std::vector<KeptProgress>& kept) {
  std::string names;  // each ends with the one byte that no path has
  if (root()) {
    for (const std::string& path : folder_.files()) names += path + '\0';
  }
  names = world_.broadcast(names, 0);
  while (!names.empty()) {
    const std::string path = names.substr(0, names.find('\0'));
    names.erase(0, path.size() + 1);
    if (try_checkpoint(path, requests, shape, dtype)) break;
  }
  if (!reader_) {
    if (root()) {
      fmt::print(stderr,
                 "{} holds no usable checkpoint: unfinished requests start from their "
                 "beginning\n",
                 options_.checkpoint_dir);
    }
    return;
  }
  const io::CheckpointContents& contents = reader_->contents();
  const bool anew = began_with_other_weights();
  std::string taken(contents.sequences.size(), '0');
  for (std::size_t i = 0; root() && !anew && i < contents.sequences.size(); ++i) {
    const io::CheckpointSequence& s = contents.sequences[i];
    if (s.is_beginning()) continue;
    KeptProgress& progress = kept[static_cast<std::size_t>(s.request)];
    if (progress.finished || !reader_->is_complete(i) || s.positions() == 0) continue;
    progress.cached = static_cast<std::int32_t>(s.positions());
    progress.generated = static_cast<std::int32_t>(s.generated);
    taken[i] = '1';
  }
  taken = world_.broadcast(taken, 0);
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (taken[i] == '1') saved_[contents.sequences[i].request] = i;
  }
  restoring_ = !saved_.empty();
  earlier_loads_ = contents.expert_loads;
  if (root()) {
    fmt::print(stderr, "resuming from {}: step {}, {} requests under way\n", reader_->path(), pass_,
               saved_.size());
  }
}

/// Says so on stderr.
bool Checkpoints::began_with_other_weights() const {
  const std::string names = state_of(*reader_).value("weights", "");
  if (names == weights_) return false;
  if (root() && !reader_->contents().sequences.empty()) {
    fmt::print(stderr,
               "the requests under way in {} began with weights {}, and {} are loaded: they start "
               "anew\n",
               reader_->path(), names, weights_);
  }
  return true;
}

Restore Checkpoints::restore_into(SharedKv& kv) {
  return [this, &kv](std::int32_t request, std::span<const std::int32_t> pages) {
    const std::size_t index = saved_.at(request);
    const io::CheckpointContents& contents = reader_->contents();
    for (const std::size_t part : reader_->chain_of(index)) {
      const io::CheckpointSequence& s = contents.sequences[part];
      for (std::int64_t piece = 0; piece < s.num_pieces(); ++piece) {
        const auto [first, count] = io::piece_of(s, piece);
        keys_.resize(static_cast<std::size_t>(count * contents.row_bytes()));
        values_.resize(keys_.size());
        for (int layer = 0; layer < contents.num_layers; ++layer) {
          reader_->read_piece(part, layer, piece, keys_, values_);
          kv.load(layer, pages, s.first + first, count, keys_, values_);
        }
      }
    }
    const auto tokens = reader_->tokens_of(index);
    const auto logprobs = reader_->logprobs_of(index);
    return SavedSequence{{tokens.begin(), tokens.end()},
                         {logprobs.begin(), logprobs.end()},
                         reader_->tops_of(index),
                         contents.sequences[index].greedy != 0};
  };
}

std::int32_t Checkpoints::phase() {
  if (phase_ == CheckpointPhase::idle && root() && !folder_.empty() &&
      policy_.due(pass_, now_seconds())) {
    return static_cast<std::int32_t>(CheckpointPhase::due);
  }
  if (phase_ == CheckpointPhase::writing && cursor_.sequence == own_.size()) {
    try {
      if (writer_->synced()) phase_ = CheckpointPhase::written;
    } catch (const Error& error) {
      failure_ = error.what();
      phase_ = CheckpointPhase::failed;
    }
  }
  return static_cast<std::int32_t>(phase_);
}

void Checkpoints::advance(std::span<const RankLoad> loads, const CheckpointSource& source,
                          double pass_seconds) {
  const double start = now_seconds();
  if (restoring_ && source.resumed_waiting.empty()) restoring_ = false;
  const CheckpointMove move = next_move(loads, writer_ != nullptr);
  switch (move.kind) {
    case CheckpointMove::Kind::none:
      break;
    case CheckpointMove::Kind::begin:
      begin(source);
      break;
    case CheckpointMove::Kind::go_on:
      if (phase_ == CheckpointPhase::writing && cursor_.sequence < own_.size()) {
        write_some(source, checkpoint_share_of_pass * pass_seconds);
      }
      break;
    case CheckpointMove::Kind::end:
      end();
      break;
    case CheckpointMove::Kind::give_up:
      give_up(failure_, move.failed_rank == world_.rank());
      break;
  }
  if (move.kind != CheckpointMove::Kind::none) cost_.seconds += now_seconds() - start;
  ++pass_;
}

namespace {
/// [layers]: the ranks of each expert; null for a dense layer.
ordered_json placement_json(const Placement& placement) {
  ordered_json layers = ordered_json::array();
  for (std::size_t layer = 0; layer < placement.kind_of_layer.size(); ++layer) {
    ordered_json& of_layer = layers.emplace_back();
    if (placement.kind_of_layer[layer] < 0) continue;
    of_layer = placement.of(static_cast<int>(layer)).ranks_of_expert();
  }
  return layers;
}
}  // namespace

/// What was run, and as what; rank 0 alone knows.
std::string Checkpoints::state_text(const CheckpointSource& source) const {
  if (!root()) return "";
  ordered_json options = ordered_json::object();
  for (const auto& [name, value] : options_.items()) options[name] = value;
  ordered_json state = {{"run", identity_(nullptr)},
                        {"step", pass_},
                        {"ranks", world_.size()},
                        {"sampler",
                         "random numbers are counted: a request's seed and the "
                         "number of its generated tokens are the whole state"},
                        {"placement", placement_json(*source.placement)},
                        {"options", options}};
  if (!weights_.empty()) state["weights"] = weights_;
  return io::json_text(state);
}

void Checkpoints::begin(const CheckpointSource& source) {
  policy_.begun(pass_, now_seconds());
  const ModelShape& shape = *source.shape;
  io::CheckpointContents contents;
  contents.num_layers = shape.num_layers;
  // Where keys and values are not alike, halves of rows of both take their places.
  const bool plain = is_plain(shape);
  contents.num_kv_heads = plain ? shape.num_kv_heads : 1;
  contents.head_dim = plain ? shape.head_dim : static_cast<int>(kv_half_row(shape));
  contents.num_experts = shape.num_experts;
  contents.dtype = source.dtype;
  contents.expert_loads = source.traffic->tokens_of_expert;
  contents.expert_loads.resize(static_cast<std::size_t>(shape.num_layers * shape.num_experts));
  world_.allreduce(std::span(contents.expert_loads), comm::Communicator::Reduce::sum);
  for (std::size_t i = 0; i < earlier_loads_.size() && i < contents.expert_loads.size(); ++i) {
    contents.expert_loads[i] += earlier_loads_[i];
  }
  const Kinds kinds = list_sequences(source, contents);
  contents.state = world_.broadcast(state_text(source), 0);
  row_bytes_ = contents.row_bytes();
  cursor_ = {};
  try {
    const comm::Waiting waiting("creating the checkpoint");
    writer_ =
        std::make_unique<io::CheckpointWriter>(folder_.file_of(pass_), contents, kinds.tokens,
                                               kinds.logprobs, kinds.tops, world_.fortran_handle());
    phase_ = CheckpointPhase::writing;
    if (own_.empty()) writer_->start_sync();
  } catch (const Error& error) {
    give_up(error.what(), root());
  }
}

void Checkpoints::write_some(const CheckpointSource& source, double seconds) {
  const double end = now_seconds() + seconds;
  const auto fails_with = [this](const std::exception& error) {
    failure_ = error.what();
    phase_ = CheckpointPhase::failed;
  };
  bool wrote = false;
  // Who fails still says so to the others, who wait for a word.
  while (cursor_.sequence < own_.size()) {
    const bool go_on = phase_ == CheckpointPhase::writing && (!wrote || now_seconds() < end);
    if (!(source.kv->alone() ? go_on : source.kv->agreed(go_on))) return;
    try {
      write_at_cursor(source, wrote);
    } catch (const std::exception& error) {
      fails_with(error);
    }
  }
  try {
    if (phase_ == CheckpointPhase::writing) writer_->start_sync();
  } catch (const std::exception& error) {
    fails_with(error);
  }
}

void Checkpoints::write_at_cursor(const CheckpointSource& source, bool& wrote) {
  const Cursor at = cursor_;
  const io::CheckpointSequence& s = own_[at.sequence];
  std::span<const std::int32_t> pages;  // of any that has it, and is under way still
  for (const std::int32_t request : holders_[at.sequence]) {
    for (const auto& batcher : source.batchers) {
      if (pages.empty()) pages = batcher->pages_of(request);
    }
  }
  const bool kept = carried() || !pages.empty();
  const bool writes = kept && at.piece < s.num_pieces();
  // First: where writing fails, the cursors of all ranks that have the sequence stay together.
  cursor_ = {at.sequence + 1, 0, 0};
  if (writes) {
    if (at.layer + 1 < source.shape->num_layers) {
      cursor_ = {at.sequence, at.piece, at.layer + 1};
    } else if (at.piece + 1 < s.num_pieces()) {
      cursor_ = {at.sequence, at.piece + 1, 0};
    }
    wrote = true;
    write_piece(source, at, pages);
  }
  if (kept && speaks_ && cursor_.sequence > at.sequence) {
    writer_->set_complete(static_cast<std::int64_t>(at.sequence));
  }
}

void Checkpoints::write_piece(const CheckpointSource& source, const Cursor& at,
                              std::span<const std::int32_t> pages) {
  const io::CheckpointSequence& s = own_[at.sequence];
  const auto [first, count] = io::piece_of(s, at.piece);
  keys_.resize(static_cast<std::size_t>(count * row_bytes_));
  values_.resize(keys_.size());
  if (at.sequence < first_carried_) {
    source.kv->save(at.layer, pages, s.first + first, count, keys_, values_);
  } else if (speaks_) {
    reader_->read_piece(old_[at.sequence], at.layer, at.piece, keys_, values_);
  }
  if (!speaks_) return;
  writer_->write_piece(static_cast<std::int64_t>(at.sequence), at.layer, at.piece, keys_, values_);
  comm::watched::progress();  // all of a large checkpoint may take longer than any pass
}

void Checkpoints::end() {
  try {
    const comm::Waiting waiting("closing the checkpoint");
    writer_->finish();
    cost_.written += 1;
    cost_.bytes += writer_->bytes_written();
    writer_.reset();
    phase_ = CheckpointPhase::idle;
    if (root()) {
      folder_.add(folder_.file_of(policy_.last_pass()));
      // The one that it resumed from stays while ranks still read it.
      folder_.retire(restoring_ && reader_ ? reader_->path() : "");
    }
  } catch (const Error& error) {
    give_up(error.what(), root());
  }
}

void Checkpoints::give_up(const std::string& reason, bool reporter) {
  if (reporter)
    fmt::print(stderr, "no checkpoint of step {}: {}; the run goes on\n", policy_.last_pass(),
               reason);
  close();
  cost_.failed += 1;
  phase_ = CheckpointPhase::idle;
  failure_.clear();
}

std::string Checkpoints::write_now(const CheckpointSource& source) {
  if (folder_.empty()) return "";
  comm::watched::stage("the last checkpoint", setup_deadlines * options_.deadline);
  close();
  const std::int64_t before = cost_.written;
  begin(source);
  if (!writer_) return "no checkpoint could be written";
  constexpr double for_ever = 1e9;
  if (cursor_.sequence < own_.size()) write_some(source, for_ever);
  // Where the one that writes for this rank has failed, there is nothing that will become whole.
  while (cursor_.sequence == own_.size() &&
         phase() == static_cast<std::int32_t>(CheckpointPhase::writing)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const auto phases = world_.allgather(static_cast<std::int32_t>(phase_));
  const auto failed =
      std::find(phases.begin(), phases.end(), static_cast<std::int32_t>(CheckpointPhase::failed));
  if (failed == phases.end()) {
    end();
  } else {
    give_up(failure_, failed - phases.begin() == world_.rank());
  }
  if (cost_.written == before) return "no checkpoint could be written";
  return fmt::format("{} holds the rest", folder_.file_of(pass_));
}

void Checkpoints::close() {
  if (!writer_) return;
  const comm::Waiting waiting("removing an unfinished checkpoint");
  writer_->abandon();
  writer_.reset();
}

}  // namespace atl
