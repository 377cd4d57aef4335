#include "app/run/weight_updates.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "app/run/identity.hpp"
#include "compute/clock.hpp"
#include "compute/error.hpp"

namespace atl {

using nlohmann::ordered_json;

std::string difference_in_form(const OpenModel& was, const OpenModel& is) {
  const std::string differs = difference(ordered_json::parse(was.config.to_json()),
                                         ordered_json::parse(is.config.to_json()));
  if (!differs.empty()) return differs;
  return was.file->attachments() == is.file->attachments() ? "" : "its tokenizer is another one";
}

WeightUpdates::WeightUpdates(const std::string& folder, const StageBackend& to, OpenModel& model)
    : to_(to), model_(model), names_{model.weights()} {
  to_.world.agree([&] {
    if (root()) folder_.emplace(folder);
  });
}

UpdatePhase WeightUpdates::phase(double now) {
  if (ready_) return UpdatePhase::ready;
  if (next_) {
    const bool checked = check_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    return checked ? UpdatePhase::checked : UpdatePhase::checking;
  }
  return folder_ && !folder_->waiting(now).empty() ? UpdatePhase::found : UpdatePhase::none;
}

void WeightUpdates::advance(std::span<RankLoad> loads, UpdateMode mode, const compute::Part& part) {
  while (true) {
    switch (next_update_move(loads, mode)) {
      case UpdateMove::none:
        return;
      case UpdateMove::open:
        attempt([this] { open(); });
        break;
      case UpdateMove::judge:
        attempt([this] { judge(); });
        break;
      case UpdateMove::take_up:
        attempt([&] { take_up(part); });
        break;
    }
    const UpdatePhase now = ready_  ? UpdatePhase::ready
                            : next_ ? UpdatePhase::checking
                                    : UpdatePhase::none;
    for (RankLoad& load : loads) load.update = static_cast<std::int32_t>(now);
  }
}

void WeightUpdates::attempt(const std::function<void()>& work) {
  try {
    work();
  } catch (const comm::AgreedFailure& failure) {
    if (!whole_) throw;
    next_.reset();
    ready_ = false;
    ++refused_;
    if (root()) folder_->refuse(fmt::format("{}: {}", path_, failure.what()));
  }
}

void WeightUpdates::open() {
  // Rank 0 has looked before; this does not look again.
  path_ = to_.world.broadcast(root() ? folder_->waiting(0) : "", 0);
  OpenModel next(to_.world, path_, model_.dtype);
  to_.world.agree([&] {
    if (!root()) return;
    const std::string differs = difference_in_form(model_, next);
    require(differs.empty(), "it is no other version of the run's model: {}", differs);
  });
  next_ = std::move(next);
  check_ =
      std::async(std::launch::async, [this] { return comm::failure_of([this] { verify(); }); });
}

/// All slabs of the file, each by one rank. Runs beside the passes.
void WeightUpdates::verify() {
  std::vector<std::byte> bytes;
  int number = 0;
  for (const io::DatasetInfo& dataset : next_->file->datasets()) {
    bytes.resize(std::max(bytes.size(), static_cast<std::size_t>(dataset.slab_bytes())));
    const auto slab_bytes = std::span(bytes).first(static_cast<std::size_t>(dataset.slab_bytes()));
    for (std::int64_t slab = 0; slab < dataset.num_slabs() && !stops_; ++slab) {
      if (number++ % to_.world.size() != to_.world.rank()) continue;
      next_->file->read_slab(dataset, slab, slab_bytes);
    }
  }
}

void WeightUpdates::judge() {
  const comm::Failure failure = check_.get();
  to_.world.agree([&] {
    if (failure.exit_code != 0) throw Error(failure.message);
  });
  ready_ = true;
}

void WeightUpdates::take_up(const compute::Part& part) {
  const double begin = now_seconds();
  replace(part);
  next_.reset();
  ready_ = false;
  const double seconds = now_seconds() - begin;
  seconds_ += seconds;
  if (!root()) return;
  folder_->done();
  fmt::print(stderr, "weights {} of {} are taken up, in {:.1f} s\n", weights(), path_, seconds);
}

void WeightUpdates::replace(const compute::Part& part) {
  const StageBackend to{to_.world, to_.topology, to_.job, part, to_.backend};
  whole_ = false;
  LoadedModel loaded;
  try {
    loaded = load_stage(to, *next_);
  } catch (const comm::AgreedFailure&) {
    load_stage(to, model_);
    whole_ = true;
    throw;
  }
  whole_ = true;
  // What others know of the configuration is the same, and stays where it is.
  model_.file = std::move(next_->file);
  names_.push_back(model_.weights());
  stored_non_finite_ |=
      warn_of_non_finite(to_.world, *model_.file, model_.dtype, loaded.non_finite);
}

nlohmann::json WeightUpdates::report() const {
  return {{"weights", names_}, {"refused", refused_}, {"seconds", seconds_}};
}

}  // namespace atl
