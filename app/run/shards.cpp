#include "app/run/shards.hpp"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <fstream>

#include "app/run/identity.hpp"
#include "compute/error.hpp"
#include "io/part.hpp"
#include "io/text_file.hpp"

namespace atl {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

namespace {

constexpr const char* part_format = "atoll-part";
constexpr const char* joined_format = "atoll-joined";
constexpr int format_version = 1;
constexpr const char* shard_key = "shard";
constexpr int most_shards = 1000000;

/// Digits alone; -1 for anything else.
int number_of(std::string_view text) {
  if (text.empty() || text.find_first_not_of("0123456789") != std::string_view::npos) return -1;
  int number = -1;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

/// Both as text; an index or count of -1 is none.
Shard numbers_of(std::string_view index, std::string_view count) {
  return {number_of(index), number_of(count)};
}

bool is_shard(const Shard& shard) {
  return shard.index >= 0 && shard.index < shard.count && shard.count <= most_shards;
}

std::string facts_line(const char* format, const ordered_json& run, const PartFacts& facts) {
  return io::journal_line(0, ordered_json({{"format", format},
                                           {"format_version", format_version},
                                           {"run", run},
                                           {"requests", facts.requests}})
                                 .dump());
}

/// Nothing unless it is what facts_line() writes.
std::optional<PartFacts> facts_from(const std::string& text, const char* format) {
  const auto json = ordered_json::parse(text, nullptr, false);
  if (!json.is_object()) return {};
  for (const char* name : {"format", "format_version", "run", "requests"}) {
    if (!json.contains(name)) return {};
  }
  if (json["format"] != format || json["format_version"] != format_version ||
      !json["run"].is_object() || !json["requests"].is_number_unsigned()) {
    return {};
  }
  PartFacts facts;
  facts.run = json["run"];
  facts.requests = json["requests"].get<std::int64_t>();
  return facts;
}

/// What a record says of the joined results.
ordered_json results_json(const io::FileSum& sum, bool served) {
  return {
      {"bytes", sum.bytes}, {"xxh3_64", fmt::format("{:016x}", sum.checksum)}, {"served", served}};
}

std::string record_path(const std::string& output) {
  const fs::path path = io::text_place_of(output).path;
  return path.parent_path() / ("." + path.filename().native() + ".joined");
}

/// The facts of the part at `path`, all of whose lines are good. Throws Error where they are not.
PartFacts whole_part(const std::string& path) {
  io::PartReader part(path);
  PartFacts facts = part_facts(part.header(), path);
  std::int64_t lines = 0;
  while (part.next()) ++lines;
  require(lines == facts.shard.share_of(facts.requests), "{} has lost lines", path);
  return facts;
}

}  // namespace

std::string Shard::text() const {
  return fmt::format("{}/{}", index, count);
}

std::int64_t Shard::share_of(std::int64_t requests) const {
  return (requests + count - 1 - index) / count;
}

Shard shard_of(const std::string& text) {
  const std::size_t slash = text.find('/');
  const Shard shard = slash == std::string::npos
                          ? Shard{-1, -1}
                          : numbers_of(std::string_view(text).substr(0, slash),
                                       std::string_view(text).substr(slash + 1));
  if (is_shard(shard)) return shard;
  if (shard.index >= 0 && shard.count > 0 && shard.count <= most_shards) {
    throw UsageError(fmt::format(
        "--shard {}: the {} shards have the numbers 0 to {}; give one of them, in a job array with "
        "--array=0-{}",
        text, shard.count, shard.count - 1, shard.count - 1));
  }
  throw UsageError(
      fmt::format("--shard {}: not a number, a slash and how many shards there are; give e.g. 0/2 "
                  "and 1/2 for two",
                  text));
}

std::string part_path(const std::string& output, const Shard& shard) {
  const io::TextPlace place = io::text_place_of(output);
  std::error_code ignored;
  require(!place.direct && !fs::is_directory(place.path, ignored),
          "cannot write parts beside {}: it is no regular file; give --output a name that the "
          "joined results shall have",
          output);
  return fmt::format("{}.shard-{}-of-{}", place.path, shard.index, shard.count);
}

std::vector<Shard> parts_beside(const std::string& output) {
  const fs::path path = io::text_place_of(output).path;
  const std::string start = path.filename().native() + ".shard-";
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::vector<Shard> shards;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().native();
    if (!name.starts_with(start)) continue;
    const std::string_view numbers = std::string_view(name).substr(start.size());
    constexpr std::string_view between = "-of-";
    const std::size_t middle = numbers.find(between);
    if (middle == std::string_view::npos) continue;
    const Shard shard =
        numbers_of(numbers.substr(0, middle), numbers.substr(middle + between.size()));
    if (is_shard(shard)) shards.push_back(shard);
  }
  require(!error, "cannot read {} ({}); check the path and its permissions", folder.native(),
          error.message());
  return shards;
}

ordered_json with_shard(const ordered_json& identity, const Shard& shard) {
  ordered_json run = identity;
  run[shard_key] = shard.text();
  return run;
}

std::string part_header(const PartFacts& facts) {
  return facts_line(part_format, with_shard(facts.run, facts.shard), facts);
}

PartFacts part_facts(const std::string& header, const std::string& path) {
  auto facts = facts_from(header, part_format);
  require(facts && facts->run.contains(shard_key) && facts->run[shard_key].is_string(),
          "{} is no part of a run, or that of another version; remove it and compute its shard "
          "again",
          path);
  facts->shard = shard_of(facts->run[shard_key].get<std::string>());
  facts->run.erase(shard_key);
  return *facts;
}

void write_record(const std::string& output, const PartFacts& facts) {
  const auto sum = io::sum_of_file(output);
  require(sum.has_value(), "cannot read {} back; check the disk", output);
  io::TextFile file(record_path(output));
  file.write(facts_line(joined_format, facts.run, facts));
  file.write(io::journal_line(1, results_json(*sum, facts.served).dump()));
  file.close();
}

std::optional<PartFacts> joined_facts(const std::string& output) {
  std::ifstream file(record_path(output), std::ios::binary);
  std::string first;
  std::string second;
  if (!std::getline(file, first) || !std::getline(file, second)) return {};
  const auto header = io::parse_journal_line(first);
  const auto of_file = io::parse_journal_line(second);
  if (!header || !of_file) return {};
  auto facts = facts_from(std::string(header->result), joined_format);
  const auto sum = io::sum_of_file(output);
  if (!facts || !sum) return {};
  for (const bool served : {true, false}) {
    facts->served = served;
    if (of_file->result == results_json(*sum, served).dump()) return facts;
  }
  return {};
}

std::string finished_before(const std::string& output, const Shard& shard,
                            const ordered_json& identity) {
  const std::string path = part_path(output, shard);
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    const auto joined = joined_facts(output);
    if (!joined || !difference(joined->run, identity).empty()) return {};
    return fmt::format("{} has the results of all shards already; remove it to compute them anew",
                       output);
  }
  std::optional<PartFacts> part;
  try {
    part = whole_part(path);
  } catch (const Error&) {
    fmt::print(stderr, "{} is damaged; its shard is computed again\n", path);
    return {};
  }
  const std::string differs =
      difference(with_shard(part->run, part->shard), with_shard(identity, shard));
  require(differs.empty(),
          "cannot resume: {} is of another run: {}; run with what it was made with, or remove the "
          "file to compute its shard anew",
          path, differs);
  return fmt::format("shard {} is finished: {} has its {} results", shard.text(), path,
                     shard.share_of(part->requests));
}

}  // namespace atl
