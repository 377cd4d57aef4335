#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "app/run/identity.hpp"
#include "io/checkpoint.hpp"

namespace atl {

/// The state of a checkpoint. Throws Error where it says neither run nor step.
nlohmann::ordered_json state_of(const io::CheckpointReader& reader);

/// Throws Error when the checkpoint in `path`, of this state, is that of another run.
void require_own(const std::string& path, const nlohmann::ordered_json& state,
                 const IdentityLike& identity);

/// The folder that checkpoints lie in, numbered by pass. Rank 0 looks into it and cleans it.
class CheckpointFolder {
 public:
  explicit CheckpointFolder(std::string path) : path_(std::move(path)) {}

  bool empty() const { return path_.empty(); }  ///< none was named
  const std::string& path() const { return path_; }
  std::string file_of(std::int64_t number) const;
  /// All checkpoints in it, newest first.
  std::vector<std::string> files() const;
  /// The identity of the run that left the newest checkpoint that can be read; null without any.
  nlohmann::ordered_json recorded() const;

  /// Makes the folder. Throws Error when nothing can be written there.
  void create() const;
  /// Notes which files are this run's own, and removes what was never finished. Without `resume`
  /// throws Error when one is of another run. Returns a number above those of all files.
  std::int64_t take_over(const IdentityLike& identity, bool resume);

  /// A file of this run was written.
  void add(const std::string& file) { own_.push_back(file); }
  /// Removes this run's older files, but not the one that is still `needed`. No other is touched.
  void retire(const std::string& needed);

 private:
  std::string path_;
  std::vector<std::string> own_;  // this run's, oldest first
};

}  // namespace atl
