#include "app/run/broadcast_requests.hpp"

#include <nlohmann/json.hpp>
#include <string>

namespace atl {

using nlohmann::json;

namespace {

std::string to_text(const json& value) {
  const auto bytes = json::to_cbor(value);
  return {bytes.begin(), bytes.end()};
}

json batch_json(const io::Request& r) {
  return r.batch ? json({r.batch->model, r.batch->logprobs}) : json(nullptr);
}

json request_json(const io::Request& r) {
  return {
      r.line,           r.id,    r.tokens,     r.max_tokens ? json(*r.max_tokens) : json(nullptr),
      r.temperature,    r.top_p, r.seed,       r.own_seed,
      r.stop_token_ids, r.error, batch_json(r)};
}

io::Request request_from(const json& j) {
  io::Request r;
  r.line = j[0].get<std::int64_t>();
  r.id = j[1].get<std::string>();
  r.tokens = j[2].get<std::vector<std::int32_t>>();
  if (!j[3].is_null()) r.max_tokens = j[3].get<int>();
  r.temperature = j[4].get<double>();
  r.top_p = j[5].get<double>();
  r.seed = j[6].get<std::uint64_t>();
  r.own_seed = j[7].get<bool>();
  r.stop_token_ids = j[8].get<std::vector<std::int32_t>>();
  r.error = j[9].get<std::string>();
  if (!j[10].is_null()) r.batch = {j[10][0].get<std::string>(), j[10][1].get<bool>()};
  return r;
}

}  // namespace

std::vector<io::Request> broadcast_requests(const comm::Communicator& world,
                                            std::vector<io::Request> requests) {
  if (world.size() == 1) return requests;
  std::string text;
  if (world.rank() == 0) {
    json all = json::array();
    for (const auto& request : requests) all.push_back(request_json(request));
    text = to_text(all);
  }
  text = world.broadcast(text, 0);
  if (world.rank() == 0) return requests;
  requests.clear();
  for (const json& request : json::from_cbor(text)) requests.push_back(request_from(request));
  return requests;
}

}  // namespace atl
