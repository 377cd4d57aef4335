#include "app/run/planned_workload.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>

#include "compute/error.hpp"
#include "io/json_shown.hpp"
#include "io/json_text.hpp"
#include "io/requests.hpp"

namespace atl {

using nlohmann::json;

namespace {

constexpr std::int64_t most_requests = 10'000'000;
constexpr std::int64_t most_tokens = std::int64_t{1} << 24;

double number_in(const json& object, const char* key, double least, double most,
                 const std::string& where) {
  require(object.contains(key) && object[key].is_number(), "{} lacks a number \"{}\"", where, key);
  const double value = object[key].get<double>();
  require(value >= least && value <= most, "{}: \"{}\" is {}; give {} to {}", where, key, value,
          least, most);
  return value;
}

/// Numbers of tokens: one for all, or by a law.
class Lengths {
 public:
  Lengths(const json& file, const char* key, double least, const std::string& name)
      : least_(least) {
    const std::string where = fmt::format("{}: \"{}\"", name, key);
    require(file.contains(key),
            "{} is missing: a number, {{\"uniform\": [10, 20]}} or "
            "{{\"lognormal\": {{\"median\": 500, \"sigma\": 1}}}}",
            where);
    const json& value = file[key];
    const double most = static_cast<double>(most_tokens);
    if (value.is_number()) {
      low_ = high_ = number_in(file, key, least, most, name);
      return;
    }
    if (value.is_object() && value.contains("uniform") && value["uniform"].is_array() &&
        value["uniform"].size() == 2 && value["uniform"][0].is_number() &&
        value["uniform"][1].is_number()) {
      low_ = value["uniform"][0].get<double>();
      high_ = value["uniform"][1].get<double>();
      require(low_ >= least && high_ >= low_ && high_ <= most,
              "{}: \"uniform\" is {}; give {} or more, and rising", where,
              io::shown(value["uniform"]), least);
      return;
    }
    require(value.is_object() && value.contains("lognormal") && value["lognormal"].is_object(),
            "{} is {}, and must be a number, {{\"uniform\": [10, 20]}} or {{\"lognormal\": "
            "{{\"median\": 500, \"sigma\": 1}}}}",
            where, io::shown(value));
    median_ = number_in(value["lognormal"], "median", std::max(1.0, least), most, where);
    sigma_ = number_in(value["lognormal"], "sigma", 0, 5, where);
  }

  std::int64_t draw(std::mt19937_64& random) const {
    // Not the library's distributions, which differ from one to the other.
    const auto unit = [&random] { return static_cast<double>(random() >> 11) * 0x1p-53; };
    if (median_ > 0) {
      const double radius = std::sqrt(-2 * std::log(1 - unit()));
      const double normal = radius * std::cos(2 * M_PI * unit());
      const double value = std::round(median_ * std::exp(sigma_ * normal));
      return static_cast<std::int64_t>(
          std::clamp(value, std::max(1.0, least_), static_cast<double>(most_tokens)));
    }
    return static_cast<std::int64_t>(low_ + std::floor(unit() * (high_ - low_ + 1)));
  }

 private:
  double least_, low_ = 0, high_ = 0, median_ = 0, sigma_ = 0;
};

void read_requests_file(const json& file, const std::string& path, const ModelShape& shape,
                        PlannedWorkload& work) {
  const std::filesystem::path at = file["requests"].get<std::string>();
  const auto full = at.is_absolute() ? at : std::filesystem::path(path).parent_path() / at;
  io::RequestLimits limits;
  limits.vocab = shape.vocab;
  limits.max_positions = shape.max_positions;
  limits.default_max_tokens = static_cast<int>(file.value("new_tokens", 64));
  limits.scoring = work.scoring;
  std::int64_t refused = 0;
  std::string first;
  for (const io::Request& request : io::read_requests(full.string(), limits)) {
    if (!request.error.empty()) {
      if (refused++ == 0) first = request.error;
      continue;
    }
    const int tokens = request.max_tokens.value_or(limits.default_max_tokens);
    work.requests.push_back({std::ssize(request.tokens), work.scoring ? 0 : tokens});
  }
  require(!work.requests.empty(), "{}: no request of {} can be planned: {}", path, full.string(),
          first);
}

}  // namespace

std::int64_t PlannedWorkload::prompt_tokens() const {
  std::int64_t sum = 0;
  for (const JobRequest& request : requests) sum += request.prompt_tokens;
  return sum;
}

std::int64_t PlannedWorkload::new_tokens() const {
  std::int64_t sum = 0;
  for (const JobRequest& request : requests) sum += request.new_tokens;
  return sum;
}

PlannedWorkload read_workload(const std::string& path, const ModelShape& shape,
                              std::uint64_t seed) {
  const json file = io::read_json_object(path, path);
  require(file.contains("format") && file["format"] == "atoll-workload" &&
              file.value("format_version", 0) == 1,
          "{} is no workload (JSON with \"format\": \"atoll-workload\", \"format_version\": 1); "
          "see perf/workloads",
          path);
  constexpr std::string_view known[] = {"format",     "format_version", "name",
                                        "about",      "prompts",        "prompt_tokens",
                                        "new_tokens", "requests",       "mode"};
  for (const auto& [key, ignored] : file.items()) {
    require(std::find(std::begin(known), std::end(known), key) != std::end(known),
            "{} has \"{}\", which no workload has; it may have {}", path, key,
            fmt::join(known, ", "));
  }
  PlannedWorkload work;
  work.name = file.value("name", path);
  const std::string mode = file.value("mode", std::string("generate"));
  require(mode == "generate" || mode == "score", "{}: \"mode\" is \"{}\"; choose generate or score",
          path, mode);
  work.scoring = mode == "score";
  if (file.contains("requests")) {
    read_requests_file(file, path, shape, work);
  } else {
    const auto count = static_cast<std::int64_t>(
        number_in(file, "prompts", 1, static_cast<double>(most_requests), path));
    const Lengths prompts(file, "prompt_tokens", 1, path);
    std::mt19937_64 random(seed);
    for (std::int64_t i = 0; i < count; ++i) {
      work.requests.push_back({prompts.draw(random), 0});
    }
    if (!work.scoring) {
      const Lengths fresh(file, "new_tokens", 1, path);
      for (JobRequest& request : work.requests) request.new_tokens = fresh.draw(random);
    }
  }
  for (const JobRequest& request : work.requests) {
    const std::int64_t tokens = request.prompt_tokens + request.new_tokens;
    require(tokens <= shape.max_positions,
            "{}: a request of {} tokens and {} new ones is longer than the {} positions that the "
            "model has",
            path, request.prompt_tokens, request.new_tokens, shape.max_positions);
  }
  return work;
}

}  // namespace atl
