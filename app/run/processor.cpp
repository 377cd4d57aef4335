#include "app/run/processor.hpp"

#include <fmt/format.h>

#include <fstream>

namespace atl {

std::string processor_name() {
  // Virtual machines often shorten the name: family and model tell generations apart.
  std::ifstream file("/proc/cpuinfo");
  std::string name, family, model, line;
  while (std::getline(file, line) && !line.empty()) {  // the first processor's part
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos || colon + 2 > line.size()) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    const std::string value = line.substr(colon + 2);
    if (key == "model name" || key == "CPU part") name = value;
    if (key == "cpu family") family = ", family " + value;
    if (key == "model") model = ", model " + value;
  }
  return name.empty() ? "unknown" : fmt::format("{}{}{}", name, family, model);
}

}  // namespace atl
