#include "app/run/plan_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "app/run/memory_fit.hpp"
#include "app/run/rank_sizes.hpp"

namespace atl {

using nlohmann::ordered_json;

namespace {

const char* name_of(Phase phase) {
  return phase == Phase::prefill ? "prefill" : "decode";
}

double share_of(double part, const TimeShares& shares) {
  return shares.wall > 0 ? part / shares.wall : 0;
}

double mfu(const PlanInput& input, const PlannedPhase& phase) {
  const double peak = input.machine.peak_flops_per_s * input.ranks;
  return phase.price.seconds > 0 ? phase.price.flops / phase.price.seconds / peak : 0;
}

/// Tokens that the phase is for.
double tokens_of(const PlannedPhase& phase, Phase which) {
  return static_cast<double>(which == Phase::prefill ? phase.prompt_tokens : phase.new_tokens);
}

double median(const std::vector<double>& rising) {
  return rising.empty() ? 0 : rising[rising.size() / 2];
}

/// What a pass takes at least on this machine: arithmetic at its peaks, evenly over all ranks, or
/// the busiest link's bytes.
double limit_s(const PlannedPhase& phase) {
  return std::max(phase.price.arithmetic_limit_s, phase.price.link_limit_s);
}

std::string memory_text(const PlanInput& input, const PlannedLayout& layout) {
  std::string text;
  for (const StageMemory& stage : layout.memory.stages) {
    text +=
        fmt::format("memory of stage {}: weights {}", stage.stage, gigabytes(stage.plan.weights));
    std::string kinds;
    for (const auto& [kind, bytes] : stage.weights) {
      kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", kind, gigabytes(bytes));
    }
    const std::int64_t kv = stage.plan.kv_cache * layout.memory.pages;
    text += fmt::format(
        " ({}), KV cache {} for {} tokens, workspace {}, chunks {}, received rows {}; of {}\n",
        kinds, gigabytes(kv), layout.memory.pages * page_tokens, gigabytes(stage.plan.workspace),
        gigabytes(stage.plan.chunks), gigabytes(stage.plan.received),
        gigabytes(static_cast<std::int64_t>(input.machine.memory_bytes)));
  }
  const double tokens = static_cast<double>(input.work.prompt_tokens() + input.work.new_tokens()) /
                        static_cast<double>(input.work.requests.size());
  const JobLayout job(layout.division, input.machine.nodes_of(input.ranks));
  const double sequences = static_cast<double>(layout.memory.most_pages * page_tokens) / tokens;
  text += fmt::format(
      "largest batch: {:.0f} sequences of {:.0f} tokens at once ({} for each of {} "
      "that share attention)\n",
      std::floor(sequences) * job.num_owners(), tokens, std::floor(sequences), job.num_owners());
  return text;
}

std::string phase_line(const PlanInput& input, const PlannedPhase& phase, Phase which) {
  if (phase.passes == 0) return "";
  const TimeShares& shares = phase.price.shares;
  const auto percent = [&](double part) { return fmt::format("{:.0f} %", 100 * part); };
  return fmt::format(
      "{:<8}{:>7}{:>12.0f}{:>10.3f}{:>9}{:>7}{:>7}{:>10}{:>9.2f}{:>7}{:>7}{:>12.0f}  {}\n",
      name_of(which), phase.passes, tokens_of(phase, which) / phase.seconds,
      phase.seconds / static_cast<double>(phase.passes) * 1e3,
      percent(share_of(shares.compute, shares)), percent(share_of(shares.communication, shares)),
      percent(share_of(shares.synchronisation, shares)), percent(share_of(shares.overhead, shares)),
      shares.overlapped_share(), percent(mfu(input, phase)),
      percent(phase.price.busiest_link_use()),
      tokens_of(phase, which) / static_cast<double>(phase.passes) / limit_s(phase),
      limit_of(phase));
}

std::string form_text(const PlannedLayout& layout, const PlannedPhase& phase) {
  std::string text = fmt::format("route {}, {} chunk{}", name_of(phase.form.route), phase.chunks,
                                 phase.chunks == 1 ? "" : "s");
  if (layout.division.tp > 1) {
    text += fmt::format(", output by {}", compute::name_of(phase.form.output));
  }
  return text;
}

ordered_json form_json(const PassForm& form, int chunks) {
  return {{"route", name_of(form.route)},
          {"chunks", chunks},
          {"output", compute::name_of(form.output)}};
}

ordered_json shares_json(const TimeShares& shares) {
  return {{"compute", share_of(shares.compute, shares)},
          {"communication", share_of(shares.communication, shares)},
          {"synchronisation", share_of(shares.synchronisation, shares)},
          {"overhead", share_of(shares.overhead, shares)},
          {"overlapped_share", shares.overlapped_share()}};
}

ordered_json phase_json(const PlanInput& input, const PlannedPhase& phase, Phase which) {
  if (phase.passes == 0) return nullptr;
  const PassPrice& price = phase.price;
  ordered_json samples = ordered_json::array();
  for (const PlannedPhase::Sample& sample : phase.samples) {
    samples.push_back({{"pass", sample.pass}, {"seconds", sample.seconds}});
  }
  ordered_json tried = ordered_json::array();
  for (const auto& way : phase.tried) {
    tried.push_back(form_json(way.form, way.chunks));
    tried.back()["seconds"] = way.seconds;
  }
  return {{"passes", phase.passes},
          {"seconds", phase.seconds},
          {"prompt_tokens", phase.prompt_tokens},
          {"new_tokens", phase.new_tokens},
          {"tokens_per_s", tokens_of(phase, which) / phase.seconds},
          {"pass_seconds", phase.seconds / static_cast<double>(phase.passes)},
          {"form", form_json(phase.form, phase.chunks)},
          {"tried", tried},
          {"simulated_passes", samples},
          {"share", shares_json(price.shares)},
          {"mfu", mfu(input, phase)},
          {"busiest_link",
           {{"name", price.busiest_link},
            {"bytes_of_a_pass", price.busiest_link_bytes},
            {"use", price.busiest_link_use()}}},
          {"transfer_s",
           {{"median", median(price.transfer_s)},
            {"most", price.transfer_s.empty() ? 0 : price.transfer_s.back()}}},
          {"limit",
           {{"arithmetic_s", price.arithmetic_limit_s},
            {"busiest_rank_arithmetic_s", price.busiest_arithmetic_s},
            {"busiest_link_s", price.link_limit_s}}},
          {"limited_by", limit_of(phase)}};
}

/// Of the whole job, as reports of runs have it.
ordered_json bytes_json(const PlanInput& input, const PlannedLayout& layout) {
  if (layout.bytes.empty()) return nullptr;
  const auto n = static_cast<std::size_t>(input.ranks);
  const std::vector<int> node_of = input.machine.nodes_of(input.ranks);
  double inside = 0, between = 0;
  std::vector<double> out(static_cast<std::size_t>(node_of.back()) + 1), in = out;
  ordered_json matrix = ordered_json::array();
  for (std::size_t a = 0; a < n; ++a) {
    ordered_json row = ordered_json::array();
    for (std::size_t b = 0; b < n; ++b) {
      const double bytes = layout.bytes[a * n + b];
      row.push_back(static_cast<std::int64_t>(std::llround(bytes)));
      const bool same = node_of[a] == node_of[b];
      (same ? inside : between) += bytes;
      if (same) continue;
      out[static_cast<std::size_t>(node_of[a])] += bytes;
      in[static_cast<std::size_t>(node_of[b])] += bytes;
    }
    matrix.push_back(row);
  }
  const double busiest =
      std::max(*std::max_element(out.begin(), out.end()), *std::max_element(in.begin(), in.end()));
  return {{"bytes_inside_nodes", std::llround(inside)},
          {"bytes_between_nodes", std::llround(between)},
          {"busiest_link_bytes", std::llround(busiest)},
          {"bytes_from_to", n <= 128 ? matrix : ordered_json(nullptr)}};
}

ordered_json memory_json(const PlannedLayout& layout) {
  ordered_json stages = ordered_json::array();
  for (const StageMemory& stage : layout.memory.stages) {
    ordered_json weights = ordered_json::object();
    for (const auto& [kind, bytes] : stage.weights) weights[kind] = bytes;
    stages.push_back({{"stage", stage.stage},
                      {"rank", stage.rank},
                      {"weights", stage.plan.weights},
                      {"weights_by_kind", weights},
                      {"kv_cache_page", stage.plan.kv_cache},
                      {"kv_cache", stage.plan.kv_cache * layout.memory.pages},
                      {"workspace", stage.plan.workspace},
                      {"chunks", stage.plan.chunks},
                      {"received", stage.plan.received}});
  }
  return {{"fits", layout.memory.fits()},
          {"problem", layout.memory.problem},
          {"stages", stages},
          {"kv_tokens", layout.memory.pages * page_tokens},
          {"most_kv_tokens", layout.memory.most_pages * page_tokens}};
}

}  // namespace

std::string limit_of(const PlannedPhase& phase) {
  const PassPrice& price = phase.price;
  const TimeShares& s = price.shares;
  constexpr double near = 0.8;
  if (price.link_limit_s >= near * price.seconds) return price.busiest_link;
  if (price.busiest_arithmetic_s >= near * price.seconds) return "arithmetic of the busiest rank";
  const double most = std::max({s.compute, s.communication, s.synchronisation, s.overhead});
  if (most == s.compute) return "arithmetic";
  if (most == s.communication) return "messages under way";
  if (most == s.synchronisation) return "waiting for other ranks";
  return "the host between steps";
}

std::string input_text(const PlanInput& input) {
  const Machine& machine = input.machine;
  return fmt::format("{} of {} ranks of {} ({}); {} in {}, routing {}\n", input.ranks,
                     machine.num_ranks(), machine.name,
                     std::any_of(machine.figures.begin(), machine.figures.end(),
                                 [](const MachineFigure& f) { return f.basis == Basis::measured; })
                         ? "measured"
                         : "stated rates",
                     input.work.name, name_of(input.dtype), input.routing.text());
}

std::string layout_answer(const PlanInput& input, const PlannedLayout& layout) {
  std::string text = fmt::format("layout {}\n", layout_name(layout.division, input.ranks));
  text += memory_text(input, layout);
  text += fmt::format("{:<8}{:>7}{:>12}{:>10}{:>9}{:>7}{:>7}{:>10}{:>9}{:>7}{:>7}{:>12}  {}\n",
                      "phase", "passes", "tokens/s", "ms a pass", "compute", "comm", "sync",
                      "overhead", "overlap", "MFU", "link", "limit", "limited by");
  for (const Phase phase : {Phase::prefill, Phase::decode}) {
    text += phase_line(input, layout.of(phase), phase);
  }
  for (const Phase phase : {Phase::prefill, Phase::decode}) {
    const PlannedPhase& p = layout.of(phase);
    if (p.passes == 0) continue;
    text += fmt::format(
        "{}: {}; an exchange of experts' rows takes {:.0f} us (median), {:.0f} us "
        "at most\n",
        name_of(phase), form_text(layout, p), median(p.price.transfer_s) * 1e6,
        p.price.transfer_s.empty() ? 0 : p.price.transfer_s.back() * 1e6);
  }
  return text + fmt::format(
                    "{:.0f} tokens/s over the whole job of {:.3f} s; TTFT median {:.0f} ms, p99 "
                    "{:.0f} ms; TPOT median {:.3f} ms, p99 {:.3f} ms\n",
                    layout.tokens_per_s(), layout.seconds, layout.ttft_median_s * 1e3,
                    layout.ttft_p99_s * 1e3, layout.tpot_median_s * 1e3, layout.tpot_p99_s * 1e3);
}

std::string ranking_text(const PlanInput& input, const RankedLayouts& layouts) {
  std::string text = fmt::format("{:<24}{:>12}{:>12}{:>12}{:>12}  {}\n", "layout", "tokens/s",
                                 "prefill ms", "decode ms", "weights", "limited by");
  for (const PlannedLayout& layout : layouts.fitting) {
    const auto ms = [&](Phase phase) {
      const PlannedPhase& p = layout.of(phase);
      return p.passes == 0 ? 0 : p.seconds / static_cast<double>(p.passes) * 1e3;
    };
    const PlannedPhase& longer =
        layout.of(Phase::prefill).seconds > layout.of(Phase::decode).seconds
            ? layout.of(Phase::prefill)
            : layout.of(Phase::decode);
    std::int64_t weights = 0;
    for (const StageMemory& stage : layout.memory.stages) {
      weights = std::max(weights, stage.plan.weights);
    }
    text +=
        fmt::format("{:<24}{:>12.0f}{:>12.3f}{:>12.3f}{:>12}  {}\n",
                    layout_name(layout.division, input.ranks), layout.tokens_per_s(),
                    ms(Phase::prefill), ms(Phase::decode), gigabytes(weights), limit_of(longer));
  }
  if (!layouts.bounded.empty()) {
    text += fmt::format("{} more fit and were not simulated: their arithmetic alone says\n",
                        layouts.bounded.size());
    for (const PlannedLayout& layout : layouts.bounded) {
      text += fmt::format("{:<24}{:>12.0f} at best\n", layout_name(layout.division, input.ranks),
                          layout.tokens_per_s());
    }
  }
  if (!layouts.too_large.empty()) {
    text += fmt::format("{} more do not fit\n", layouts.too_large.size());
  }
  return text;
}

ordered_json plan_json(const PlanInput& input, const PlannedLayout& layout) {
  ordered_json figures = ordered_json::array();
  for (const MachineFigure& f : input.machine.figures) {
    figures.push_back(
        {{"name", f.name}, {"value", f.value}, {"basis", name_of(f.basis)}, {"source", f.source}});
  }
  return {{"format", "atoll-plan"},
          {"format_version", 1},
          {"machine", {{"name", input.machine.name}, {"figures", figures}}},
          {"ranks", input.ranks},
          {"workload",
           {{"name", input.work.name},
            {"requests", input.work.requests.size()},
            {"prompt_tokens", input.work.prompt_tokens()},
            {"new_tokens", input.work.new_tokens()}}},
          {"routing", input.routing.text()},
          {"layout", layout_name(layout.division, input.ranks)},
          {"memory", memory_json(layout)},
          {"phases",
           {{"prefill", phase_json(input, layout.of(Phase::prefill), Phase::prefill)},
            {"decode", phase_json(input, layout.of(Phase::decode), Phase::decode)}}},
          {"exchange", bytes_json(input, layout)},
          {"seconds", layout.seconds},
          {"tokens_per_s", layout.tokens_per_s()},
          {"ttft_s", {{"median", layout.ttft_median_s}, {"p99", layout.ttft_p99_s}}},
          {"tpot_s", {{"median", layout.tpot_median_s}, {"p99", layout.tpot_p99_s}}},
          {"basis", "every time is predicted from the machine's figures above"}};
}

ordered_json ranking_json(const PlanInput& input, const RankedLayouts& layouts) {
  ordered_json list = ordered_json::array();
  for (const auto* group : {&layouts.fitting, &layouts.bounded, &layouts.too_large}) {
    for (const PlannedLayout& layout : *group) {
      ordered_json entry = {{"layout", layout_name(layout.division, input.ranks)},
                            {"memory", memory_json(layout)}};
      if (layout.memory.fits()) {
        entry["simulated"] = !layout.bound;
        entry["tokens_per_s"] = layout.tokens_per_s();
        entry["seconds"] = layout.seconds;
        entry["tpot_s"] = layout.tpot_median_s;
        entry["phases"] = {
            {"prefill", phase_json(input, layout.of(Phase::prefill), Phase::prefill)},
            {"decode", phase_json(input, layout.of(Phase::decode), Phase::decode)}};
      }
      list.push_back(entry);
    }
  }
  return list;
}

}  // namespace atl
