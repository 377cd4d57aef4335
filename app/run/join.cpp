#include "app/run/join.hpp"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "app/run/identity.hpp"
#include "app/run/results.hpp"
#include "app/run/shards.hpp"
#include "compute/error.hpp"
#include "io/part.hpp"
#include "io/requests.hpp"
#include "io/text_file.hpp"

namespace atl {

namespace fs = std::filesystem;

namespace {

/// All parts are open at once, which may be more files than a process may open unless it asks.
void allow_open_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);  // where it fails, the file that cannot be opened is named
}

std::string command_of(const std::string& output, const Shard& shard) {
  return fmt::format("atoll run --shard {} --output {} --resume", shard.text(), output);
}

class Join {
 public:
  explicit Join(const JoinOptions& options) : options_(options) {}

  void run() {
    part_path(options_.output, {});  // refuses what is no file
    find_count();
    if (count_ == 0) return say_joined();
    const std::optional<Shard> missing = open_parts();
    if (missing && joined_before()) {  // then a join was interrupted while it removed the parts
      remove_parts();
      return say_joined();
    }
    if (missing) refuse_missing(*missing);
    if (!parts_[0]->lock()) {
      fail("cannot join {}: another atoll join is at it; wait for its end", options_.output);
    }
    if (!parts_[0]->is_there()) return Join(options_).run();  // that other one has just ended
    require_one_run();
    write();
    write_record(options_.output, whole_);
    remove_parts();
    fmt::print("{}: {} results of {} shards\n", options_.output, whole_.requests, count_);
    require_served(whole_);
  }

 private:
  /// How many shards there are: as asked for, or as the parts' names say; 0 when there is no part.
  void find_count() {
    std::vector<int> counts;
    for (const Shard& shard : parts_beside(options_.output)) {
      if (options_.shards == 0 || options_.shards == shard.count) counts.push_back(shard.count);
    }
    std::sort(counts.begin(), counts.end());
    counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
    require(counts.size() < 2,
            "cannot join {}: there are parts of runs in {} shards beside it; choose with --shards, "
            "or remove the others",
            options_.output, fmt::join(counts, " and "));
    if (!counts.empty()) count_ = counts[0];
  }

  void say_joined() const {
    const int example = options_.shards > 0 ? options_.shards : 2;
    const auto joined = joined_facts(options_.output);
    require(joined.has_value(),
            "nothing to join: there is no {}.shard-0-of-{}, or another such part; compute each "
            "shard first: {}",
            options_.output, example, command_of(options_.output, {0, example}));
    fmt::print("{}: has been joined before, {} results\n", options_.output, joined->requests);
    require_served(*joined);
  }

  void require_served(const PartFacts& facts) const {
    if (facts.served) return;
    throw NothingServed(fmt::format(
        "no request could be served, of {} in all shards; {} says why for each: mend them and run "
        "again",
        facts.requests, options_.output));
  }

  /// Opens the parts that are there. Returns the first that is not.
  std::optional<Shard> open_parts() {
    allow_open_files();
    std::optional<Shard> missing;
    std::error_code ignored;
    for (int i = 0; i < count_; ++i) {
      const Shard shard{i, count_};
      const std::string path = part_path(options_.output, shard);
      if (!fs::exists(path, ignored)) {
        if (!missing) missing = shard;
        continue;
      }
      parts_.push_back(std::make_unique<io::PartReader>(path));
      facts_.push_back(part_facts(parts_.back()->header(), path));
      require(facts_.back().shard.text() == shard.text(),
              "cannot join {}: {} is of shard {}; remove it, or give it the name of that shard",
              options_.output, path, facts_.back().shard.text());
    }
    return missing;
  }

  /// Whether the output was made of these parts and others.
  bool joined_before() const {
    const auto joined = joined_facts(options_.output);
    return joined && std::all_of(facts_.begin(), facts_.end(), [&](const PartFacts& facts) {
             return difference(joined->run, facts.run).empty();
           });
  }

  [[noreturn]] void refuse_missing(const Shard& shard) const {
    const std::string path = part_path(options_.output, shard);
    std::error_code ignored;
    fail("cannot join {}: {} of {} parts are missing, the first is {} ({}); then join again: {}",
         options_.output, static_cast<std::size_t>(count_) - parts_.size(), count_, path,
         fs::exists(path + ".journal", ignored)
             ? "its run has not finished: let it end, or go on with it"
             : "compute its shard",
         command_of(options_.output, shard));
  }

  void require_one_run() {
    whole_ = facts_[0];
    whole_.served = false;  // so far
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      std::string differs = difference(whole_.run, facts_[i].run);
      if (differs.empty() && facts_[i].requests != whole_.requests) {
        differs = fmt::format("requests was {} and is {}", whole_.requests, facts_[i].requests);
      }
      require(
          differs.empty(),
          "cannot join {}: {} is of another run than {}: {}; remove the one that is not wanted and "
          "compute its shard with the other's options",
          options_.output, parts_[i]->path(), parts_[0]->path(), differs);
    }
  }

  void write() {
    io::TextFile file(options_.output);
    std::int64_t line = 0;
    for (std::int64_t i = 0; i < whole_.requests; ++i) {
      io::PartReader& part = *parts_[static_cast<std::size_t>(i % count_)];
      const auto entry = part.next();
      require(entry && entry->line > line, "{} is damaged or has lost lines; {}", part.path(),
              advice(part));
      line = entry->line;
      whole_.served = whole_.served || !io::error_in(entry->result);
      file.write(std::string(entry->result) + "\n");
    }
    for (const auto& part : parts_) {
      require(!part->next(), "{} is damaged: it has more lines than its shard; {}", part->path(),
              advice(*part));
    }
    file.close();
  }

  std::string advice(const io::PartReader& part) const {
    return fmt::format("compute its shard again: {}",
                       command_of(options_.output, part_facts(part.header(), part.path()).shard));
  }

  void remove_parts() const {
    if (options_.keep_parts) return;
    for (const auto& part : parts_) {
      std::error_code error;
      fs::remove(part->path(), error);
      if (error) fmt::print(stderr, "cannot remove {} ({})\n", part->path(), error.message());
    }
  }

  const JoinOptions& options_;
  int count_ = 0;
  std::vector<std::unique_ptr<io::PartReader>> parts_;
  std::vector<PartFacts> facts_;  // [parts]
  PartFacts whole_;
};

}  // namespace

void join_parts(const JoinOptions& options) {
  Join(options).run();
}

}  // namespace atl
