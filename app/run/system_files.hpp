#pragma once
// Folders of the kernel's that say what a machine has.

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

namespace atl {

/// What a folder holds, in order of names; nothing where it cannot be read.
inline std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> entries;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    entries.push_back(entry.path());
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace atl
