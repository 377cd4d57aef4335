#include "app/run/request_rows.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace atl {

RequestRows request_rows(const RequestList& requests, const std::vector<std::string>& names,
                         Mode mode, int max_tokens) {
  RequestRows rows;
  rows.ids = names;
  rows.first_row.push_back(0);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const RequestEntry& request = requests[i];
    const std::int64_t prompt = request.prompt_tokens;
    rows.prompt_lengths.push_back(prompt);
    const int said = request.max_tokens < 0 ? max_tokens : request.max_tokens;
    // All of a prompt goes through the layers, also where nothing follows.
    const int new_tokens = mode == Mode::score ? 1 : std::max(1, said);
    rows.first_row.push_back(rows.first_row.back() +
                             (request.usable == 1 ? prompt + new_tokens - 1 : 0));
  }
  return rows;
}

RequestRows shared_request_rows(const comm::Communicator& world, const RequestRows& rows) {
  using nlohmann::json;
  const auto bytes = json::to_cbor(json({rows.ids, rows.prompt_lengths, rows.first_row}));
  const json all = json::from_cbor(world.broadcast({bytes.begin(), bytes.end()}, 0));
  return {all[0].get<std::vector<std::string>>(), all[1].get<std::vector<std::int64_t>>(),
          all[2].get<std::vector<std::int64_t>>()};
}

}  // namespace atl
