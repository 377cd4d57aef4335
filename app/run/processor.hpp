#pragma once

#include <string>

namespace atl {

/// The processor that this process runs on, by what the kernel says of it: "AMD EPYC, family 26,
/// model 2". "unknown" where it does not say.
std::string processor_name();

}  // namespace atl
