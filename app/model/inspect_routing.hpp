#pragma once
// What a file of experts' choices holds, and how its tokens spread over the experts.

#include <string>

namespace atl {

/// Of a recorded file or a .npy: requests and positions, then of each layer loads, skew and which
/// experts go together. With `verify` also compares checksums, where the file has them. Throws
/// Error: not such a file, damaged.
std::string routing_text(const std::string& path, bool verify);

}  // namespace atl
