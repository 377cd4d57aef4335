#pragma once
// What a planned job has to do: prompts and new tokens, as numbers, by a law, or of a requests
// file.

#include <cstdint>
#include <string>
#include <vector>

#include "app/plan/job_walk.hpp"
#include "compute/types.hpp"

namespace atl {

struct PlannedWorkload {
  std::string name;
  std::vector<JobRequest> requests;
  bool scoring = false;

  std::int64_t prompt_tokens() const;
  std::int64_t new_tokens() const;
};

/// Reads {"format": "atoll-workload", ...}; app/README.md says what is in it. Throws Error, which
/// begins with the file's name, for what is missing or cannot be.
PlannedWorkload read_workload(const std::string& path, const ModelShape& shape, std::uint64_t seed);

}  // namespace atl
