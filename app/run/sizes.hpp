#pragma once
// How large a run's passes, chunks, buffers and KV cache are.

#include <algorithm>
#include <string>
#include <vector>

#include "app/config.hpp"
#include "app/mode.hpp"
#include "app/plan/placement.hpp"
#include "app/run/batch_options.hpp"
#include "app/run/open_model.hpp"
#include "app/run/ranks.hpp"
#include "app/run/request_list.hpp"
#include "app/run/sequences.hpp"
#include "comm/communicator.hpp"
#include "compute/backend.hpp"

namespace atl {

struct Sizes {
  BatchOptions batch;
  compute::BackendOptions backend;  ///< of this rank
  SequenceRoom room;

  /// Chunks that are under way at the same time, at most.
  int num_chunks() const { return std::max(batch.max_chunks, batch.num_flights); }
};

/// What there is to size.
struct Sized {
  const OpenModel& model;
  const Placement& placement;
  const JobLayout& job;
  const Ranks& ranks;
  const RequestList& requests;  ///< rank 0's, as far as they have been read
  bool all_read;                ///< so that there are no others; on rank 0
  Mode mode;
};

/// Collective: alike on all ranks but for what each holds. Without --kv-tokens the KV cache is what
/// the requests can use and the memory of all ranks allows. Where more of them are still to be
/// read, one may come that is as long as the model allows.
Sizes sizes_of(const comm::Communicator& world, const RunOptions& options, const Sized& sized);

/// What the KV cache was sized by, for a message.
std::string kv_limit(const RunOptions& options, const Ranks& ranks);

}  // namespace atl
