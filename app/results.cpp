#include "app/results.hpp"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"

namespace atl {

using nlohmann::json;

namespace {

std::string to_text(const json& value) {
  const auto bytes = json::to_cbor(value);
  return {bytes.begin(), bytes.end()};
}

json request_json(const io::Request& r) {
  return {r.line,        r.id,    r.tokens, r.max_tokens ? json(*r.max_tokens) : json(nullptr),
          r.temperature, r.top_p, r.seed,   r.stop_token_ids,
          r.error};
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
  r.stop_token_ids = j[7].get<std::vector<std::int32_t>>();
  r.error = j[8].get<std::string>();
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

std::string gather_results(const comm::Communicator& world,
                           const std::vector<io::Request>& requests,
                           const std::vector<FinishedRequest>& mine, Mode mode, bool has_text,
                           RequestSummary& summary) {
  json own = json::array();
  for (const FinishedRequest& f : mine) {
    own.push_back({f.request, f.result.tokens, f.result.logprobs, f.result.finish_reason,
                   f.times.first_token, f.times.last_token});
  }
  std::map<std::int32_t, json> by_request;
  for (const std::string& text : world.gather(to_text(own), 0)) {
    for (json& entry : json::from_cbor(text)) {
      const auto index = entry[0].get<std::int32_t>();
      by_request.emplace(index, std::move(entry));
    }
  }
  if (world.rank() != 0) return {};
  std::string lines;
  double logprob_sum = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const io::Request& request = requests[i];
    ++summary.requests;
    if (!request.error.empty()) {
      ++summary.refused;
      lines += io::error_line(request) + "\n";
      continue;
    }
    const auto found = by_request.find(static_cast<std::int32_t>(i));
    require(found != by_request.end(), "internal: request {} (line {}) was never finished",
            request.id, request.line);
    const json& entry = found->second;
    io::Result result;
    result.has_text = has_text;
    result.tokens = entry[1].get<std::vector<std::int32_t>>();
    result.logprobs = entry[2].get<std::vector<float>>();
    result.finish_reason = entry[3].get<std::string>();
    const double first = entry[4].get<double>();
    const double last = entry[5].get<double>();
    summary.first_token_s.push_back(first);
    if (mode == Mode::generate && result.tokens.size() > 1) {
      summary.per_token_s.push_back((last - first) / static_cast<double>(result.tokens.size() - 1));
    }
    if (mode == Mode::score) {
      for (const float logprob : result.logprobs) logprob_sum += static_cast<double>(logprob);
      summary.scored_tokens += static_cast<std::int64_t>(result.logprobs.size());
    }
    lines += io::result_line(request, result, mode == Mode::score) + "\n";
  }
  if (summary.scored_tokens > 0) {
    summary.perplexity = std::exp(-logprob_sum / static_cast<double>(summary.scored_tokens));
  }
  return lines;
}

}  // namespace atl
