#pragma once
// The results of runs that shared their requests, as one run would have written them.

#include "app/config.hpp"

namespace atl {

/// Checks that the parts beside the output are all there, whole and of one run, and makes the
/// output of them, in the order of the input; then removes them, unless they are to be kept. Where
/// that was done before, says so. Throws Error naming the shard that is missing, differs or is
/// damaged; then an earlier output stays as it was.
void join_parts(const JoinOptions& options);

}  // namespace atl
