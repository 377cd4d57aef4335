#pragma once
// Made-up environment variables.

#include <map>
#include <string>

#include "comm/launcher.hpp"

namespace atl::testing {

inline comm::launcher::Variables variables(std::map<std::string, std::string> values) {
  return [values](const char* name) -> const char* {
    const auto found = values.find(name);
    return found == values.end() ? nullptr : found->second.c_str();
  };
}

}  // namespace atl::testing
