// A requests file from anywhere: bad lines become error lines, and whatever is written is JSON.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "io/requests.hpp"
#include "tests/fuzz/fuzz_input.hpp"

namespace {

void expect_json(const std::string& line) {
  atl::fuzz::expect(line.find('\n') == std::string::npos);
  atl::fuzz::expect(nlohmann::json::parse(line, nullptr, false).is_object());
}

void check(const atl::io::Request& request, const atl::io::RequestLimits& limits) {
  using namespace atl;
  if (!request.error.empty()) return expect_json(io::error_line(request));
  const auto positions = static_cast<std::size_t>(limits.max_positions);
  fuzz::expect(!request.tokens.empty() && request.tokens.size() <= positions);
  const auto in_vocabulary = [&](std::int32_t token) { return token >= 0 && token < limits.vocab; };
  fuzz::expect(std::all_of(request.tokens.begin(), request.tokens.end(), in_vocabulary));
  fuzz::expect(request.temperature >= 0 && request.top_p > 0 && request.top_p <= 1);
  io::Result result;
  result.tokens = request.tokens;
  result.logprobs.assign(request.tokens.size() - (limits.scoring ? 1 : 0), -0.5F);
  const auto tops = static_cast<std::size_t>(request.top_logprobs);
  result.tops.assign(request.tokens.size() * tops, {1, -0.5F});
  result.token_bytes.assign(request.tokens.size() * (1 + tops), "\xc3");
  result.finish_reason = "length";
  const std::string line = io::result_line(request, result, limits.scoring);
  expect_json(line);
  fuzz::expect(request.part >= 0 && request.part < request.parts);
  fuzz::expect(request.min_p >= 0 && request.min_p <= 1 && request.top_k >= 0);
  if (request.in_parts())
    expect_json(io::joined_line(request.is_continuation(), std::vector(2, line)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace atl;
  const fuzz::MemoryFile file({data, size});
  io::RequestLimits limits;
  limits.vocab = 256;
  limits.max_positions = 512;
  limits.default_max_tokens = 16;
  for (const bool scoring : {false, true}) {
    limits.scoring = scoring;
    fuzz::accepted([&] {
      for (const io::Request& request : io::read_requests(file.path(), limits)) {
        check(request, limits);
      }
    });
  }
  return 0;
}
