#pragma once
// Other weights for a run: found in its --control folder, checked beside the passes, and taken up
// by all ranks of all networks between two of them, or by none.

#include <atomic>
#include <functional>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/plan/rank_load.hpp"
#include "app/plan/update_policy.hpp"
#include "app/run/load_stage.hpp"
#include "app/run/open_model.hpp"
#include "app/run/update_folder.hpp"

namespace atl {

/// What keeps weights from taking the place of others in a run: all that two models' descriptions
/// have different, and other tokenizers. Empty: nothing.
std::string difference_in_form(const OpenModel& was, const OpenModel& is);

class WeightUpdates {
 public:
  /// Collective. `model` is that of the run, whose weights are in the backend; what is taken up
  /// becomes its file. Throws AgreedFailure where the folder cannot be written.
  WeightUpdates(const std::string& folder, const StageBackend& to, OpenModel& model);
  ~WeightUpdates() { stops_ = true; }
  WeightUpdates(const WeightUpdates&) = delete;
  WeightUpdates& operator=(const WeightUpdates&) = delete;

  /// What this rank says to the others before each pass. Cheap. `now` in seconds.
  UpdatePhase phase(double now);

  /// Collective, with no operation under way, where `loads` have a next_update_move(): makes all
  /// there are, and notes in the loads how far the update is then. Its weights take the place of
  /// those that are there only after all ranks together have read and verified all of the file;
  /// else it is refused and they stay. Throws AgreedFailure where reading fails both then and of
  /// the weights that were there: the backend has neither.
  /// `part` is what this rank has now: experts may have changed their ranks.
  void advance(std::span<RankLoad> loads, UpdateMode mode, const compute::Part& part);

  /// Those that are in the backend.
  const std::string& weights() const { return names_.back(); }
  /// Of the report: what was taken up and refused.
  nlohmann::json report() const;
  /// On rank 0: whether weights that were taken up are not finite on file.
  bool stored_non_finite() const { return stored_non_finite_; }

 private:
  bool root() const { return to_.world.rank() == 0; }
  /// Calls work(), and refuses the update where that throws AgreedFailure.
  void attempt(const std::function<void()>& work);
  void open();
  void judge();
  void take_up(const compute::Part& part);
  void replace(const compute::Part& part);
  void verify();

  const StageBackend to_;
  OpenModel& model_;
  std::optional<UpdateFolder> folder_;  // rank 0
  std::vector<std::string> names_;      // of the weights that this run has had, in order
  bool whole_ = true;                   // the backend has weights of one file
  std::string path_;                    // of the update under way
  std::optional<OpenModel> next_;       // its file: there on all ranks or on none
  bool ready_ = false;                  // all have checked it
  std::atomic<bool> stops_ = false;     // the thread that checks it
  std::future<comm::Failure> check_;    // ends before what it reads goes
  int refused_ = 0;
  double seconds_ = 0;
  bool stored_non_finite_ = false;
};

}  // namespace atl
