#include "app/run/written_files.hpp"

#include <fmt/format.h>

#include <filesystem>

#include "compute/error.hpp"
#include "io/text_file.hpp"

namespace atl {

void require_separate_files(const RunOptions& options, const std::string& written) {
  std::vector<std::pair<std::string, std::string>> files = {
      {"--model", options.model},
      {"--input", options.input},
      {"--replay-routing", options.replay_routing},
      {"--output", options.output},
      {"--cluster", options.cluster},
      {"--report", options.report},
      {"--status", options.status},
      {"--trace", options.trace},
      {"--activations", options.activations},
      {"--record-routing", options.record_routing}};
  // What else is written beside these.
  const auto add_beside = [&files](const std::string& name, const std::string& path, bool journal) {
    const io::TextPlace place = io::text_place_of(path);
    if (path.empty() || place.direct) return;
    files.emplace_back("the unfinished " + name, place.partial());
    if (journal) files.emplace_back("the journal of " + name, place.path + ".journal");
  };
  add_beside("--output", options.output, written == options.output);
  add_beside("--report", options.report, false);
  add_beside("--status", options.status, false);
  add_beside("--trace", options.trace, false);
  add_beside("--record-routing", options.record_routing, false);
  files.emplace_back("the note on transports of --output", transport_note(options));
  if (written != options.output) {
    files.emplace_back("the part of --output", written);
    add_beside("the part of --output", written, true);
  }
  constexpr std::size_t model_and_input = 2;
  require_separate_files(files, model_and_input);
}

void require_separate_files(const std::vector<std::pair<std::string, std::string>>& files,
                            std::size_t written) {
  namespace fs = std::filesystem;
  const auto same = [](const std::string& a, const std::string& b) {
    std::error_code ignored;
    if (a.empty() || b.empty()) return false;
    if (fs::exists(a, ignored) && !fs::is_regular_file(a, ignored)) return false;  // /dev/null
    const auto whole =
        [&](const std::string& path) {  // a file that is not there stays relative else
          return fs::weakly_canonical(fs::absolute(path, ignored), ignored);
        };
    return whole(a) == whole(b) || fs::equivalent(a, b, ignored);
  };
  for (std::size_t one = written; one < files.size(); ++one) {
    for (std::size_t other = 0; other < one; ++other) {
      if (!same(files[one].second, files[other].second)) continue;
      throw UsageError(fmt::format("{} {} is the same file as {}; give each its own",
                                   files[one].first, files[one].second, files[other].first));
    }
  }
}

std::string transport_note(const RunOptions& options) {
  const io::TextPlace place = io::text_place_of(options.output);
  return options.output.empty() || place.direct ? "" : place.path + ".transports";
}

}  // namespace atl
