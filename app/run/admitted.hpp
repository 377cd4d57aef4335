#pragma once
// A request on its way to the rank that serves it.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/requests.hpp"

namespace atl {

struct Admitted {
  std::int32_t request = 0;  ///< index into the requests
  std::int32_t cached = 0;   ///< tokens whose keys and values an earlier run kept
  io::Request asked;         ///< usable: without an error, its prompt encoded
};

/// Appends it to a message. Between processes of one machine type: numbers are as in memory.
void append_to(std::string& text, const Admitted& admitted);
/// All that were appended to a message, in order. Throws Error for any other text.
std::vector<Admitted> admitted_from(std::string_view text);

}  // namespace atl
