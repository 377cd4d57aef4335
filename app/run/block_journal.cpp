#include "app/run/block_journal.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"

namespace atl {

using nlohmann::json;

namespace {

json parsed(std::string_view line) {
  return json::parse(line, nullptr, /*allow_exceptions=*/false);
}

bool is_entry(const json& entry) {
  return entry.is_object() && entry.contains("counts") && entry.contains("drift") &&
         entry["counts"].is_array() && entry["drift"].is_array() && entry["drift"].size() == 3;
}

/// The lines of the text that are entries, from its beginning to the first that is none.
std::string whole_entries(const std::string& text) {
  std::size_t at = 0;
  while (true) {
    const std::size_t end = text.find('\n', at);
    if (end == std::string::npos ||
        !is_entry(parsed(std::string_view(text).substr(at, end - at)))) {
      return text.substr(0, at);
    }
    at = end + 1;
  }
}

}  // namespace

BlockJournal::BlockJournal(const std::string& output, bool resume) : path_(output + ".blocks") {
  if (resume) {
    std::ifstream before(path_, std::ios::binary);
    text_ = whole_entries({std::istreambuf_iterator<char>(before), {}});
  }
  blocks_ = static_cast<std::int64_t>(entries_of(text_).size());
  file_.open(path_, std::ios::binary | std::ios::trunc);
  file_ << text_ << std::flush;
  require(file_.good(), "cannot write {} (--balance bias): {}", path_, std::strerror(errno));
}

std::vector<BlockJournal::Entry> BlockJournal::entries_of(std::string_view text) {
  std::vector<Entry> entries;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const json entry = parsed(text.substr(0, end));
    text.remove_prefix(end + 1);
    const auto drift = entry.at("drift").get<std::vector<std::int64_t>>();
    entries.push_back({entry.at("counts").get<std::vector<std::int64_t>>(),
                       {drift.at(0), drift.at(1), drift.at(2)}});
  }
  return entries;
}

void BlockJournal::append(const Entry& entry) {
  const Drift& drift = entry.drift;
  const json line = {{"counts", entry.counts},
                     {"drift", {drift.tokens, drift.change, drift.absolute_change}}};
  file_ << line.dump() << '\n' << std::flush;
  require(file_.good(), "cannot write {}: {}", path_, std::strerror(errno));
  ++blocks_;
}

void BlockJournal::remove() {
  file_.close();
  std::remove(path_.c_str());
}

}  // namespace atl
