#pragma once
// Which ways tokens may take to their experts, and into how many chunks passes may be cut.

#include "app/config.hpp"
#include "app/plan/job_layout.hpp"
#include "app/plan/pass_choice.hpp"
#include "app/plan/schedule.hpp"
#include "app/run/cluster.hpp"
#include "app/run/groups.hpp"
#include "compute/backend.hpp"

namespace atl {

/// Passes under way at the same time: one, but where layers are in stages, for each of these as
/// many as --chunks says, or two. More let stages wait less, and give their matrices fewer rows.
int most_flights(const RunOptions& options, const JobLayout& job);

/// Chunks that a pass may be cut into, at most. By itself a rank alone cuts none, and ranks of one
/// node two: their messages take little time, and more chunks multiply fewer rows at once.
int most_chunks(const RunOptions& options, const JobLayout& job);

/// Collective: what the choice of a pass's way starts from, alike on all ranks. `cluster` may be
/// null: links are not known.
PassFacts pass_facts(const Groups& groups, const RunOptions& options, const ModelShape& shape,
                     const compute::BackendOptions& backend, const Cluster* cluster, bool cuda);

/// Whether some pass may take this route. Where no rows of experts go between nodes there are no
/// two hops; networks take the same route.
bool may_take(const RunOptions& options, const JobLayout& job, Route route);

}  // namespace atl
