#pragma once
// A copy of a file on a disk that is nearer, made once and used again while the file stays the
// same.

#include <cstdint>
#include <string>

namespace atl::io {

struct StagedCopy {
  std::string path;
  bool reused = false;
  std::int64_t bytes = 0;
  double seconds = 0;
};

/// Where a copy of `file` is in `folder`: under its name, in a folder named after where the file
/// is, so that files of one name in several places have a copy each. Throws Error when the file is
/// not there.
std::string staged_path(const std::string& file, const std::string& folder);

/// Copies `file` to its staged_path(), unless a whole copy of it, as it is now, is there already;
/// processes that do so at once wait for one another. What was written is read back and compared by
/// checksum; a copy that is used again has size and time as they were then, and begins and ends
/// like the file. Throws Error where there is no room, it differs, or
/// something of that name is there which is no such copy.
StagedCopy stage_copy(const std::string& file, const std::string& folder);

}  // namespace atl::io
