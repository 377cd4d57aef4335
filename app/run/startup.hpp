#pragma once
// What a run's start took: of the model file, and until the first requests were under way.

#include <cstdint>
#include <nlohmann/json.hpp>

#include "app/model/load.hpp"
#include "app/run/ranks.hpp"
#include "comm/communicator.hpp"
#include "io/model_file.hpp"

namespace atl {

/// Of one rank.
struct Startup {
  double open_s = 0;     ///< the model file: its structures, and telling the others
  double weights_s = 0;  ///< all of its weights, from file to backend
  LoadCost load;
  double first_admitted_s = 0;         ///< from the run's begin until a rank had its first request
  std::int64_t peak_memory_bytes = 0;  ///< of the process, over the whole run
};

/// The most memory that this process has had at once.
std::int64_t peak_memory_bytes();

/// Collective: the object `startup` of the report, on rank 0; null elsewhere.
nlohmann::json gather_startup(const comm::Communicator& world, const Startup& mine,
                              const io::ModelFileReader& file, const Ranks& ranks);

}  // namespace atl
