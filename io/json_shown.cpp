#include "io/json_shown.hpp"

namespace atl::io {

std::string shown(const nlohmann::json& value) {
  constexpr std::size_t most = 60;
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > most) text = text.substr(0, most - 3) + "...";
  return text;
}

}  // namespace atl::io
