#pragma once
// A folder for files of a test on several ranks.

#include <filesystem>
#include <optional>
#include <string>

#include "comm/communicator.hpp"
#include "tests/temporary_folder.hpp"

namespace atl {

/// A folder that rank 0 makes, all ranks use, and rank 0 removes: others must be done with it then.
class SharedFolder {
 public:
  /// Collective.
  explicit SharedFolder(const comm::Communicator& world) {
    if (world.rank() == 0) own_.emplace();
    path_ = world.broadcast(own_ ? own_->path().string() : std::string(), 0);
  }

  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::optional<TemporaryFolder> own_;
  std::filesystem::path path_;
};

}  // namespace atl
