#pragma once

#include <cstdint>
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
  io::Request asked;         ///< what was asked for, without the prompt
  io::Result result;
  RequestTimes times;
  std::string error;    ///< set: the request has no result, for this reason
  std::string weights;  ///< that computed it, where results name them, see Batcher
};

}  // namespace atl
