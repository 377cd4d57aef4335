#include "app/run/request_rows.hpp"

#include <nlohmann/json.hpp>

namespace atl {

RequestRows request_rows(const std::vector<io::Request>& requests, Mode mode, int max_tokens) {
  RequestRows rows;
  rows.first_row.push_back(0);
  for (const io::Request& request : requests) {
    rows.ids.push_back(io::name_of(request));
    const auto prompt = static_cast<std::int64_t>(request.tokens.size());
    rows.prompt_lengths.push_back(prompt);
    const int new_tokens = mode == Mode::score ? 1 : request.max_tokens.value_or(max_tokens);
    rows.first_row.push_back(rows.first_row.back() +
                             (request.error.empty() ? prompt + new_tokens - 1 : 0));
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
