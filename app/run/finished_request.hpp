#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "io/requests.hpp"

namespace atl {

/// When things happened to one request, in seconds since the job's first pass.
struct RequestTimes {
  double first_token = 0;
  double last_token = 0;
};

struct FinishedRequest {
  std::int32_t request = 0;  ///< index into the requests
  std::int64_t line = 0;     ///< its line in the input
  std::string id;
  std::optional<io::BatchLine> batch;  ///< as in its io::Request
  io::Result result;
  RequestTimes times;
  std::string error;    ///< set: the request has no result, for this reason
  std::string weights;  ///< that computed it, where results name them, see Batcher
};

}  // namespace atl
