#pragma once
// A folder for files of a test.

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "compute/error.hpp"

namespace atl {

/// Made empty under `parent`, with a name that nothing else has; removed with all that is in it.
class TemporaryFolder {
 public:
  /// Throws Error where no folder can be made.
  explicit TemporaryFolder(
      const std::filesystem::path& parent = std::filesystem::temp_directory_path()) {
    std::string name = (parent / "atoll-test-XXXXXX").string();
    require(mkdtemp(name.data()) != nullptr, "cannot make a folder in {}", parent.string());
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;  // a test may have taken rights away
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace atl
