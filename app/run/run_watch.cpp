#include "app/run/run_watch.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <utility>

#include "compute/error.hpp"
#include "compute/expert_places.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::json;

namespace {

constexpr double status_period_s = 5;
constexpr double first_status_s = 1;
constexpr std::size_t most_hot_experts = 8;
/// Less is what any batch of tokens has.
constexpr double worth_a_remark = 1.5;

std::vector<int> exchange_groups(const JobLayout& job) {
  return job.of(Share::exchange).group_of;
}

std::vector<int> nodes_of(const JobLayout& job) {
  std::vector<int> nodes;
  for (int rank = 0; rank < job.num_ranks(); ++rank) nodes.push_back(job.node_of(rank));
  return nodes;
}

json head_of_status(std::string_view state) {
  return {{"format", "atoll-status"},
          {"format_version", 1},
          {"state", state},
          {"updated", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))}};
}

/// Whole, or not at all: readers come at any time. Not flushed to the disk, as the next one comes
/// soon. False where it could not be written.
bool replace_file(const std::string& path, const std::string& text) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  return file.good() && std::rename(partial.c_str(), path.c_str()) == 0;
}

/// Null while it is not known how many there are.
json tokens_json(const RunProgress& now, const RunProgress& before) {
  if (now.total < 0) return nullptr;
  const bool first = before.total < 0;
  const std::int64_t done = now.total - now.left;
  const double seconds = now.seconds - (first ? 0 : before.seconds);
  const std::int64_t done_before = first ? 0 : before.total - before.left;
  json tokens = {{"at_most", now.total}, {"done", done}, {"per_s", nullptr}, {"eta_s", nullptr}};
  if (seconds > 0 && done > done_before) {
    const double rate = static_cast<double>(done - done_before) / seconds;
    tokens["per_s"] = rate;
    tokens["eta_s"] = static_cast<double>(now.left) / rate;
  }
  return tokens;
}

}  // namespace

void write_state(const std::string& path, std::string_view state) {
  require(replace_file(path, io::json_text(head_of_status(state), 1) + "\n"),
          "cannot write {} (--status): {}; is its folder there and writable?", path,
          std::strerror(errno));
}

RunWatch::RunWatch(const Groups& groups, const comm::Topology& topology, int num_experts,
                   std::string status)
    : groups_(groups),
      topology_(topology),
      num_experts_(num_experts),
      path_(std::move(status)),
      watch_(exchange_groups(groups.job()), nodes_of(groups.job())),
      works_(static_cast<std::size_t>(groups.job().num_ranks())),
      next_(first_status_s) {}

RankWork RunWatch::work_since(const Traffic& traffic, double expert_seconds) {
  const JobLayout& job = groups_.job();
  const int own_node = job.node_of(groups_.world().rank());
  RankWork now{traffic.rows_computed, expert_seconds, 0};
  for (std::size_t rank = 0; rank < traffic.bytes_to.size(); ++rank) {
    if (job.node_of(static_cast<int>(rank)) != own_node) {
      now.bytes_between_nodes += traffic.bytes_to[rank];
    }
  }
  const RankWork before = std::exchange(done_, now);
  return {now.rows - before.rows, now.seconds - before.seconds,
          now.bytes_between_nodes - before.bytes_between_nodes};
}

void RunWatch::add(std::span<const RankLoad> loads) {
  std::transform(loads.begin(), loads.end(), works_.begin(),
                 [](const RankLoad& load) { return load.work; });
  watch_.add(works_);
}

const std::string& RunWatch::host_of(int rank) const {
  return topology_
      .node_names[static_cast<std::size_t>(topology_.node_of[static_cast<std::size_t>(rank)])];
}

std::string RunWatch::rank_text(int rank) const {
  if (topology_.num_nodes() == 1) return fmt::format("rank {}", rank);
  return fmt::format("rank {} on {}", rank, host_of(rank));
}

std::string RunWatch::remarks() const {
  std::string text;
  const LoadWatch::Busiest busiest = watch_.busiest_rank();
  if (busiest.over_mean >= worth_a_remark) {
    text = fmt::format("busiest: {} with {:.1f} x the mean of rows", rank_text(busiest.number),
                       busiest.over_mean);
  }
  for (const SlowRank& slow : watch_.slow_ranks()) {
    text += fmt::format("{}slow: {}, {:.1f} x as long as others for its rows",
                        text.empty() ? "" : "; ", rank_text(slow.rank), slow.times);
  }
  return text;
}

json RunWatch::shares_json(std::span<const std::int32_t> shares) const {
  json reduced = json::array();
  for (std::size_t rank = 0; rank < shares.size(); ++rank) {
    if (shares[rank] == compute::ReplicaPlace::whole_share) continue;
    reduced.push_back(
        {{"rank", rank},
         {"host", host_of(static_cast<int>(rank))},
         {"share", static_cast<double>(shares[rank]) / compute::ReplicaPlace::whole_share}});
  }
  return reduced;
}

std::string RunWatch::shares_text(std::span<const std::int32_t> shares) const {
  std::vector<std::string> reduced;
  for (std::size_t rank = 0; rank < shares.size(); ++rank) {
    if (shares[rank] == compute::ReplicaPlace::whole_share) continue;
    reduced.push_back(fmt::format("{} {:.0f} %", rank_text(static_cast<int>(rank)),
                                  100.0 * shares[rank] / compute::ReplicaPlace::whole_share));
  }
  if (reduced.empty()) return "no rank is slow any more: all get their rows";
  return fmt::format("slow ranks get a part of their rows, where others have replicas: {}",
                     fmt::join(reduced, ", "));
}

/// Of the last passes.
json RunWatch::balance() const {
  const LoadWatch::Busiest rank = watch_.busiest_rank();
  const LoadWatch::Busiest node = watch_.busiest_node();
  json slow = json::array();
  for (const SlowRank& each : watch_.slow_ranks()) {
    slow.push_back({{"rank", each.rank}, {"host", host_of(each.rank)}, {"times", each.times}});
  }
  json balance = {
      {"busiest_rank",
       {{"rank", rank.number}, {"host", host_of(rank.number)}, {"rows_over_mean", rank.over_mean}}},
      {"busiest_node", nullptr},
      {"slow_ranks", slow}};
  // Nodes that --node-ranks made up have no names of their own.
  if (groups_.job().num_nodes() > 1) {
    balance["busiest_node"] = {{"node", node.number}, {"bytes_sent_over_mean", node.over_mean}};
  }
  return balance;
}

json RunWatch::report() const {
  json report = balance();
  json passes = json::array();
  for (std::size_t rank = 0; rank < watch_.slow_passes().size(); ++rank) {
    if (watch_.slow_passes()[rank] == 0) continue;
    passes.push_back({{"rank", rank},
                      {"host", host_of(static_cast<int>(rank))},
                      {"passes", watch_.slow_passes()[rank]}});
  }
  report["passes"] = watch_.passes();
  report["passes_when_slow"] = passes;
  return report;
}

void RunWatch::write_status(std::string_view state, const RunProgress& progress,
                            const Traffic& traffic) {
  std::vector<std::int64_t> tokens = traffic.tokens_of_expert;
  groups_.world().allreduce(std::span(tokens), comm::Communicator::Reduce::sum);
  if (groups_.world().rank() != 0) return;
  // While it runs: since the last time.
  std::vector<std::int64_t> recent = tokens;
  if (state == "running" && !last_tokens_.empty()) {
    for (std::size_t i = 0; i < recent.size(); ++i) recent[i] -= last_tokens_[i];
  }
  json status = head_of_status(state);
  status["seconds"] = progress.seconds;
  status["passes"] = watch_.passes();
  status["requests"] = {
      {"read", progress.requests}, {"finished", progress.finished}, {"waiting", progress.waiting}};
  status["tokens"] = tokens_json(progress, last_);
  status["prompt_tokens_saved"] = progress.saved;
  status["speculation"] = {{"proposed", progress.proposed}, {"accepted", progress.accepted}};
  status["balance"] = balance();
  status["hot_experts"] = json::array();
  for (const HotExpert& hot : hot_experts(recent, num_experts_, most_hot_experts)) {
    status["hot_experts"].push_back({{"layer", hot.layer},
                                     {"expert", hot.expert},
                                     {"tokens", hot.tokens},
                                     {"over_mean", hot.over_mean}});
  }
  if (!replace_file(path_, io::json_text(status, 1) + "\n")) {
    fmt::print(stderr, "warning: cannot write {}; the run goes on without --status\n", path_);
    path_.clear();
  }
  next_ = progress.seconds + status_period_s;
  last_ = progress;
  last_tokens_ = std::move(tokens);
}

}  // namespace atl
