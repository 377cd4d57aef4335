#include "app/run/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "app/build_info.hpp"
#include "app/run/report_traffic.hpp"
#include "comm/communicator.hpp"
#include "comm/environment.hpp"

namespace atl {

using nlohmann::json;

namespace {

/// What every rank sends to rank 0, of fixed size.
struct RankNumbers {
  std::array<PhaseTimes, 2> phases;
  compute::Backend::Memory memory;
  std::int64_t bytes_read = 0;
  double load_seconds = 0;
  std::int64_t expert_rows = 0;
  std::int64_t largest_exchange = 0;
  std::int64_t receive_growths = 0;
  std::int64_t threads = 0;
  CheckpointCost checkpoints;
};

json phase_json(const std::vector<RankNumbers>& ranks, std::size_t phase, const RunFacts& facts) {
  PhaseTimes sum;
  double wall = 0;
  for (const RankNumbers& rank : ranks) {
    const PhaseTimes& t = rank.phases[phase];
    wall = std::max(wall, t.wall);
    sum.wall += t.wall;
    sum.compute += t.compute;
    sum.exchange += t.exchange;
    sum.overlapped += t.overlapped;
    sum.communication += t.communication;
    sum.synchronisation += t.synchronisation;
    sum.overhead += t.overhead;
    sum.processed_tokens += t.processed_tokens;
    sum.prompt_tokens += t.prompt_tokens;
    sum.new_tokens += t.new_tokens;
  }
  if (wall <= 0) return nullptr;
  const double tokens = phase == 0 ? sum.prompt_tokens : sum.new_tokens;
  const double flops = sum.processed_tokens * gemm_flops_per_token(facts.config->shape);
  const double num_ranks = static_cast<double>(ranks.size());
  json phase_report = {
      {"steps", ranks[0].phases[phase].passes},
      {"wall_s", wall},
      {"processed_tokens", sum.processed_tokens},
      {"prompt_tokens", sum.prompt_tokens},
      {"new_tokens", sum.new_tokens},
      {"tokens_per_s", tokens / wall},
      {"share",
       {{"compute", sum.compute / sum.wall},
        {"communication", sum.communication / sum.wall},
        {"synchronisation", sum.synchronisation / sum.wall},
        {"overhead", sum.overhead / sum.wall}}},
      {"compute_s_per_rank", sum.compute / num_ranks},
      {"exchange_s_per_rank", sum.exchange / num_ranks},
      {"overlapped_s_per_rank", sum.overlapped / num_ranks},
      {"overlapped_share", nullptr},
      {"gemm_flops_per_s", flops / wall},
      {"mfu", nullptr},
  };
  if (std::min(sum.compute, sum.exchange) > 0) {
    phase_report["overlapped_share"] = sum.overlapped_share();
  }
  if (facts.options->peak_tflops > 0) {
    phase_report["mfu"] = flops / wall / (facts.options->peak_tflops * 1e12 * num_ranks);
  }
  return phase_report;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(std::floor(at));
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - std::floor(at));
}

json quantiles(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  return {{"median", quantile(values, 0.5)}, {"p99", quantile(values, 0.99)}};
}

/// How passes ran, by size, and what was expected of them.
json ways_json(const RunFacts& facts) {
  json ways = json::array();
  for (const PassRecord& record : facts.ways) {
    ways.push_back({{"phase", record.phase == Phase::prefill ? "prefill" : "decode"},
                    {"tokens_of_busiest_rank", {record.least_rows, 2 * record.least_rows - 1}},
                    {"route", name_of(record.way.route)},
                    {"chunks", record.way.chunks},
                    {"passes", record.passes},
                    {"estimate_s", record.estimate_s},
                    {"best_s_per_token", record.best_s_per_row}});
  }
  return ways;
}

/// Rates are those of the test exchanges, not of the run.
json transports_json(const comm::TransportChoice& choice) {
  json tried = json::array();
  for (const auto& [kind, passed, bytes_per_s] : choice.tried) {
    tried.push_back({{"transport", name_of(kind)},
                     {"passed", passed},
                     {"bytes_per_s", bytes_per_s > 0 ? json(bytes_per_s) : json(nullptr)}});
  }
  return tried;
}

json facts_json(const RunFacts& facts) {
  json options = json::object();
  for (const auto& [name, value] : facts.options->items()) options[name] = value;
  return {
      {"format", "atoll-report"},
      {"format_version", 1},
      {"build",
       {{"version", build_version},
        {"commit", build_commit},
        {"compiler", build_compiler},
        {"type", build_type}}},
      {"options", options},
      {"model",
       {{"identity", fmt::format("{:016x}", facts.model_identity)},
        {"config", json::parse(facts.config->to_json())}}},
      {"backend", facts.backend},
      {"isa", facts.isa.empty() ? json(nullptr) : json(facts.isa)},
      {"dtype", std::string(name_of(facts.dtype))},
      {"threads_per_rank", facts.threads},
      {"mpi", comm::Environment::library()},
      {"transport", name_of(facts.transport->kind)},
      {"transports_tried", transports_json(*facts.transport)},
      {"hosts", facts.topology->node_names},
      {"host_of_rank", facts.topology->node_of},
      {"ranks", facts.topology->num_ranks()},
      {"layout", layout_json(facts)},
      {"schedule",
       {{"hash", fmt::format("{:016x}", facts.schedule_hash)},
        {"chunks_at_most", facts.most_chunks},
        {"overlap", !facts.options->no_overlap}}},
      {"ways", ways_json(facts)},
      {"basis",
       "every time, rate, share and byte count is measured in this run, the links at the time that "
       "stands beside them; gemm_flops_per_s and mfu divide the model's GEMM operations by "
       "measured "
       "time; nothing is modelled"},
  };
}

/// What checkpoints cost the passes: the share is of all passes' time.
json checkpoints_json(const std::vector<RankNumbers>& ranks) {
  std::int64_t bytes = 0;
  double seconds = 0;
  double wall = 0;
  for (const RankNumbers& rank : ranks) {
    bytes += rank.checkpoints.bytes;
    seconds = std::max(seconds, rank.checkpoints.seconds);
    wall = std::max(wall, rank.phases[0].wall + rank.phases[1].wall);
  }
  return {{"written", ranks[0].checkpoints.written},
          {"failed", ranks[0].checkpoints.failed},
          {"bytes", bytes},
          {"seconds", seconds},
          {"share", wall > 0 ? seconds / wall : 0}};
}

/// What the job was given on its nodes, and by whom.
void add_given(json& report, const comm::Allotment& given, const comm::Topology& topology) {
  json nodes = json::array();
  for (std::size_t node = 0; node < given.nodes.size(); ++node) {
    const comm::Allotment::Node& one = given.nodes[node];
    nodes.push_back({{"host", topology.node_names[node]},
                     {"ranks", topology.ranks_on(static_cast<int>(node))},
                     {"cores", std::round(one.cores * 100) / 100},
                     {"cores_by", one.cores_by},
                     {"free_memory_bytes", static_cast<std::int64_t>(one.memory_bytes)},
                     {"free_memory_by", one.memory_by}});
  }
  report["given"] = {{"nodes", nodes}, {"openmp_binding_not_followed", given.openmp_not_followed}};
}

void add_links(json& report, const Cluster* cluster) {
  report["links"] = nullptr;
  if (cluster == nullptr) return;
  report["links"] = links_json(cluster->links);
  report["links"]["measured"] = cluster->measured;
  report["links"]["mpi"] = cluster->mpi;
}

}  // namespace

json gather_report(const comm::Communicator& world, const RunFacts& facts,
                   const RankMeasurements& mine, const RequestSummary& requests) {
  RankNumbers numbers;
  numbers.phases = {mine.timeline->times(Phase::prefill), mine.timeline->times(Phase::decode)};
  numbers.memory = mine.memory;
  numbers.bytes_read = mine.bytes_read;
  numbers.load_seconds = mine.load_seconds;
  numbers.expert_rows = mine.traffic->rows_computed;
  numbers.checkpoints = mine.checkpoints;
  numbers.threads = facts.threads;
  numbers.largest_exchange = mine.traffic->bytes_sent_at_once;
  numbers.receive_growths = mine.traffic->receive_growths;
  const auto ranks = world.allgather(numbers);
  const auto waits = world.gather_vectors(mine.timeline->waited_for(), 0);
  const AllTraffic traffic = gather_traffic(world, *mine.traffic, *facts.placement);
  std::array<std::int64_t, 2> tokens = {0, 0};
  for (const RankNumbers& rank : ranks) {
    tokens[0] += static_cast<std::int64_t>(rank.phases[0].prompt_tokens);
    tokens[1] += static_cast<std::int64_t>(rank.phases[1].new_tokens);
  }
  const json energy = mine.energy->report(world, tokens);
  if (world.rank() != 0) return nullptr;

  json report = facts_json(facts);
  report["energy"] = energy;
  report["phases"] = {{"prefill", phase_json(ranks, 0, facts)},
                      {"decode", phase_json(ranks, 1, facts)}};
  report["requests"] = {{"count", requests.requests},
                        {"refused", requests.refused},
                        {"failed", requests.failed},
                        {"resumed", requests.resumed},
                        {"ttft_s", quantiles(requests.first_token_s)},
                        {"tpot_s", quantiles(requests.per_token_s)}};
  if (facts.mode == Mode::score) {
    report["score"] = {{"tokens", requests.scored_tokens},
                       {"perplexity", nullptr},
                       {"requests_left_out", requests.refused + requests.failed}};
    if (requests.scored_tokens > 0) report["score"]["perplexity"] = requests.perplexity;
  }
  if (!facts.options->checkpoint_dir.empty()) report["checkpoints"] = checkpoints_json(ranks);
  add_traffic(report, traffic, facts);
  report["wait_s_by_for"] = waits;
  add_given(report, *facts.given, *facts.topology);
  add_links(report, facts.cluster);
  json per_rank = json::array();
  for (const RankNumbers& rank : ranks) {
    per_rank.push_back({{"expert_rows", rank.expert_rows},
                        {"largest_exchange_bytes", rank.largest_exchange},
                        {"weight_bytes", rank.memory.weights},
                        {"kv_cache_bytes", rank.memory.kv_cache},
                        {"buffer_bytes", rank.memory.buffers},
                        {"receive_buffer_growths", rank.receive_growths},
                        {"threads", rank.threads},
                        {"model_bytes_read", rank.bytes_read},
                        {"load_s", rank.load_seconds}});
  }
  report["per_rank"] = per_rank;
  return report;
}

namespace {

/// One line for links of one kind; "" where there are none.
std::string link_line(const json& links, const char* kind, const char* shown) {
  if (!links.is_object() || links.at(kind).is_null()) return "";
  const json& speed = links.at(kind);
  return fmt::format("links {}: {:.3g} us, {:.3g} MB/s one pair, {:.3g} MB/s a node\n", shown,
                     speed.at("latency_s").get<double>() * 1e6,
                     speed.at("pair_bytes_per_s").get<double>() * 1e-6,
                     speed.at("node_bytes_per_s").get<double>() * 1e-6);
}

/// "" where no rank took device memory within a pass.
std::string growth_line(const json& per_rank) {
  std::int64_t growths = 0;
  for (const json& rank : per_rank)
    growths += rank.at("receive_buffer_growths").get<std::int64_t>();
  if (growths == 0) return "";
  return fmt::format(
      "receive buffers grew {} times, and a device stops for that; a smaller --kv-tokens or "
      "--step-tokens leaves room for them\n",
      growths);
}

/// How most passes ran, where several nodes left a choice; else "".
std::string ways_line(const json& report) {
  const json& options = report.at("options");
  if (options.at("route") != "auto" && options.at("chunks") != "auto") return "";
  if (report.at("exchange").at("flat_would").at("bytes_between_nodes") == 0) return "";
  std::string text;
  for (const char* phase : {"prefill", "decode"}) {
    const json* most = nullptr;
    for (const json& way : report.at("ways")) {
      if (way.at("phase") != phase) continue;
      if (most == nullptr || way.at("passes") > most->at("passes")) most = &way;
    }
    if (most == nullptr) continue;
    const int chunks = most->at("chunks").get<int>();
    text += fmt::format("{}{} by route {} in {} chunk{}", text.empty() ? "" : ", ", phase,
                        most->at("route").get<std::string>(), chunks, chunks == 1 ? "" : "s");
  }
  return text.empty() ? "" : "most passes: " + text + "\n";
}

}  // namespace

std::string failures_line(const RequestSummary& requests, DType dtype, bool stored_non_finite) {
  if (requests.failed == 0) return "";
  const char* advice =
      "run these again with --dtype float32, with an --input and an --output of their own";
  if (dtype == DType::float32) advice = "see what atoll inspect says of the model file";
  if (stored_non_finite) {
    advice =
        "weights of the model file are not finite (named above), which no --dtype mends: make the "
        "file again from a whole checkpoint, with atoll import";
  }
  return fmt::format("numbers were not finite in {} of {} requests; {}\n", requests.failed,
                     requests.requests, advice);
}

std::string summary_table(const json& report) {
  std::string text =
      fmt::format("{:<10}{:>10}{:>12}{:>9}{:>7}{:>7}{:>10}{:>9}\n", "phase", "tokens", "tokens/s",
                  "compute", "comm", "sync", "overhead", "overlap");
  for (const char* name : {"prefill", "decode"}) {
    const json& phase = report.at("phases").at(name);
    if (phase.is_null()) continue;
    const json& share = phase.at("share");
    const auto percent = [&share](const char* key) {
      return fmt::format("{:.0f} %", share.at(key).get<double>() * 100);
    };
    const double tokens = phase.at("tokens_per_s").get<double>() * phase.at("wall_s").get<double>();
    const json& overlap = phase.at("overlapped_share");
    text += fmt::format("{:<10}{:>10.0f}{:>12.0f}{:>9}{:>7}{:>7}{:>10}{:>9}\n", name, tokens,
                        phase.at("tokens_per_s").get<double>(), percent("compute"),
                        percent("communication"), percent("synchronisation"), percent("overhead"),
                        overlap.is_null() ? "-" : fmt::format("{:.2f}", overlap.get<double>()));
  }
  const json& requests = report.at("requests");
  text += fmt::format("{} requests", requests.at("count").get<std::int64_t>());
  if (const auto refused = requests.at("refused").get<std::int64_t>(); refused > 0) {
    text += fmt::format(" ({} refused, see their result lines)", refused);
  }
  const auto failed = requests.at("failed").get<std::int64_t>();
  if (failed > 0) text += fmt::format(" ({} failed: numbers that are not finite)", failed);
  if (!requests.at("ttft_s").is_null() && !report.contains("score")) {
    text += fmt::format(", TTFT median {:.0f} ms, p99 {:.0f} ms",
                        requests["ttft_s"]["median"].get<double>() * 1e3,
                        requests["ttft_s"]["p99"].get<double>() * 1e3);
  }
  if (!requests.at("tpot_s").is_null()) {
    text += fmt::format("; TPOT median {:.1f} ms, p99 {:.1f} ms",
                        requests["tpot_s"]["median"].get<double>() * 1e3,
                        requests["tpot_s"]["p99"].get<double>() * 1e3);
  }
  if (report.contains("score") && !report["score"]["perplexity"].is_null()) {
    text += fmt::format("\nperplexity {:.4f} over {} tokens",
                        report["score"]["perplexity"].get<double>(),
                        report["score"]["tokens"].get<std::int64_t>());
    if (failed > 0) text += fmt::format(" (without the {} that failed)", failed);
  }
  text += "\n";
  text += growth_line(report.at("per_rank"));
  text += ways_line(report);
  text += link_line(report.at("links"), "inside_node", "inside a node");
  return text + link_line(report.at("links"), "between_nodes", "between nodes");
}

}  // namespace atl
