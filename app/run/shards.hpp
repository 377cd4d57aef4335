#pragma once
// One file of requests, shared by several runs that know nothing of each other: which requests are
// whose, and what each run leaves for `atoll join`.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "io/requests.hpp"

namespace atl {

/// A run's share of the requests: of those numbered i (from 0, without blank lines), the ones with
/// i mod count == index.
struct Shard {
  int index = 0;
  int count = 1;
  std::string text() const;  ///< "0/2"
  bool has(std::int64_t request) const { return request % count == index; }
  /// How many of `requests` are in it.
  std::int64_t share_of(std::int64_t requests) const;
};
/// Reads "0/2". Throws UsageError.
Shard shard_of(const std::string& text);

/// The file that a shard of a run with this `output` writes, beside it. A link is followed. Throws
/// Error for an output beside which nothing can be (a pipe, a device, an open file, a folder).
std::string part_path(const std::string& output, const Shard& shard);

/// The shards whose parts are beside `output`, in no order. Throws Error when the folder cannot be
/// read.
std::vector<Shard> parts_beside(const std::string& output);

/// The identity of one shard's run: its journal and checkpoints are no other shard's.
nlohmann::ordered_json with_shard(const nlohmann::ordered_json& identity, const Shard& shard);

/// What a part says of itself; for joined results, what their record says of the whole.
struct PartFacts {
  nlohmann::ordered_json run;  ///< identity, without the shard
  Shard shard;
  std::int64_t requests = 0;  ///< of the whole input
  bool served = true;         ///< in a record: not all results are errors
};
/// The first line of a part, with its newline.
std::string part_header(const PartFacts& facts);
/// What the header of the part `path` says. Throws Error when it is none.
PartFacts part_facts(const std::string& header, const std::string& path);

/// Notes beside `output`, which is whole, what it was made of. Throws Error when that cannot be
/// written.
void write_record(const std::string& output, const PartFacts& facts);
/// What the record beside `output` says; nothing where there is none, or where `output` is not (or
/// no longer) the file that it speaks of.
std::optional<PartFacts> joined_facts(const std::string& output);

/// What makes it needless to compute this shard of the run `identity` (without the shard), for a
/// message: its part is whole, or all parts have been joined. Empty when it must be computed; says
/// so on stderr where that is because its part is damaged. Throws Error when the part is of another
/// run.
std::string finished_before(const std::string& output, const Shard& shard,
                            const nlohmann::ordered_json& identity);

}  // namespace atl
