#include "app/run/memory_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "app/config_layout.hpp"
#include "app/run/placement_file.hpp"
#include "app/run/rank_sizes.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

std::vector<int> divisors(int number) {
  std::vector<int> all;
  for (int d = 1; d <= number; ++d) {
    if (number % d == 0) all.push_back(d);
  }
  return all;
}

/// Nodes of 8 ranks where these divide so, as `atoll layout` has them.
std::vector<int> usual_nodes(int num_ranks) {
  constexpr int usual = 8;
  std::vector<int> node_of(static_cast<std::size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    node_of[static_cast<std::size_t>(rank)] = num_ranks % usual == 0 ? rank / usual : 0;
  }
  return node_of;
}

/// Whether ranks and model divide so, and then fit.
bool would_fit(const RunOptions& options, const ModelShape& shape, DType dtype, int num_ranks,
               const Division& division, const RankMemory& memory) {
  try {
    require_divides(division, shape);
    const JobLayout job(division, usual_nodes(num_ranks));
    return fits(options, {shape, dtype, job}, memory);
  } catch (const Error&) {
    return false;
  }
}

/// All divisions of so many ranks into no more networks than asked for; those that change least of
/// what was asked for first.
std::vector<Division> other_divisions(const Division& asked, int num_ranks) {
  std::vector<Division> all;
  for (const int replicas : divisors(asked.replicas)) {
    for (const int pp : divisors(num_ranks / replicas)) {
      const int stage = num_ranks / replicas / pp;
      for (const int tp : divisors(stage)) {
        for (const int expert_tp : divisors(stage)) all.push_back({replicas, pp, tp, expert_tp});
      }
    }
  }
  const auto cost = [&](const Division& d) {
    const int changed = (d.replicas != asked.replicas) + (d.pp != asked.pp) + (d.tp != asked.tp) +
                        (d.expert_tp != asked.expert_tp);
    return std::tuple(changed, d.pp, d.tp * d.expert_tp, -d.replicas);
  };
  std::stable_sort(all.begin(), all.end(),
                   [&](const Division& a, const Division& b) { return cost(a) < cost(b); });
  return all;
}

/// What says a division where another one was asked for.
std::string options_of(const Division& division, const Division& asked) {
  std::string text;
  for (const auto& [name, value, before] :
       {std::tuple{"--replicas", division.replicas, asked.replicas},
        {"--pp", division.pp, asked.pp},
        {"--tp", division.tp, asked.tp},
        {"--expert-tp", division.expert_tp, asked.expert_tp}}) {
    if (value == 1 && before == 1) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : " ", name, value);
  }
  return text;
}

}  // namespace

RankNeeds needs_of_rank(const RunOptions& options, const DividedModel& model, int rank, bool cuda) {
  const Placement placement = placement_of(options, model.shape, model.job.exchange_of(rank));
  const RankModel of_rank{model.shape, model.dtype, placement, model.job};
  BatchOptions batch = batch_options(options, of_rank, Mode::generate);
  limit_to(std::numeric_limits<std::int64_t>::max(), options, model.job.division().tp, batch);
  RankNeeds needs{backend_options(rank, options, of_rank, batch, std::max(1, options.threads)), {}};
  needs.options.num_pages = 1;
  needs.plan =
      cuda ? compute::cuda_memory_plan(needs.options) : compute::cpu_memory_plan(needs.options);
  return needs;
}

std::int64_t must_fit(const compute::MemoryPlan& plan, const RankMemory& memory) {
  return memory.cuda || memory.stated ? plan.total() : plan.weights;
}

std::vector<Division> open_divisions(const RunOptions& options, const ModelShape& shape,
                                     int num_ranks) {
  std::vector<Division> all = {division_of(options, num_ranks)};
  const Division asked = all.front();
  const int networks = asked.replicas * asked.pp;
  // A placement is of as many ranks as exchange rows by what was asked for.
  if (!expert_tp_is_open(options) || !options.placement.empty() || shape.num_experts == 0 ||
      num_ranks % networks != 0) {
    return all;
  }
  const int stage = num_ranks / networks;
  for (const int members : divisors(stage)) {
    const bool places = options.slots == 0 || stage / members * options.slots >= shape.num_experts;
    if (members == 1 || !places || shape.hidden % members != 0 ||
        shape.moe_intermediate % members != 0) {
      continue;
    }
    all.push_back(asked);
    all.back().expert_tp = members;
  }
  return all;
}

/// Even shares differ by one at most, and their first or last rank has most.
bool fits(const RunOptions& options, const DividedModel& model, const RankMemory& memory) {
  const int stage = model.job.ranks_of_stage();
  for (int first = 0; first < stage * model.job.division().pp; first += stage) {
    for (const int rank : {first, first + stage - 1}) {
      const RankNeeds needs = needs_of_rank(options, model, rank, memory.cuda);
      if (static_cast<double>(must_fit(needs.plan, memory)) > memory.bytes) return false;
    }
  }
  return true;
}

std::string what_would_fit(const RunOptions& options, const ModelShape& shape, DType dtype,
                           int num_ranks, const RankMemory& memory) {
  const Division asked = division_of(options, num_ranks);
  if (options.placement.empty()) {
    for (const Division& division : other_divisions(asked, num_ranks)) {
      if (division != asked && would_fit(options, shape, dtype, num_ranks, division, memory)) {
        return options_of(division, asked) + " would fit";
      }
    }
    constexpr int most_ranks = 4096;
    for (int ranks = 2 * num_ranks; ranks <= most_ranks; ranks *= 2) {
      for (const Division& division : open_divisions(options, shape, ranks)) {
        if (division.replicas != asked.replicas) continue;
        if (would_fit(options, shape, dtype, ranks, division, memory)) {
          return fmt::format("{} ranks would do", ranks);
        }
      }
    }
  }
  return "use more ranks, a smaller --step-tokens, or a --dtype of fewer bytes";
}

std::string does_not_fit(const RunOptions& options, const DividedModel& model,
                         const compute::MemoryPlan& plan, const RankMemory& memory) {
  return fmt::format(
      "a rank's part of the model does not fit: it takes {} (weights {}, buffers {}, a KV cache of "
      "{} tokens {}), and a rank has {}{}{}; {}",
      gigabytes(plan.total()), gigabytes(plan.weights), gigabytes(plan.buffers()), page_tokens,
      gigabytes(plan.kv_cache), gigabytes(static_cast<std::int64_t>(memory.bytes)),
      memory.by.empty() ? "" : ", limited by ", memory.by,
      what_would_fit(options, model.shape, model.dtype, model.job.num_ranks(), memory));
}

std::string gigabytes(std::int64_t bytes) {
  if (bytes < 100'000'000) return fmt::format("{:.2f} MB", static_cast<double>(bytes) * 1e-6);
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) * 1e-9);
}

}  // namespace atl
