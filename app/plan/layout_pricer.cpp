#include "app/plan/layout_pricer.hpp"

#include <algorithm>
#include <numeric>

#include "app/plan/in_parallel.hpp"
#include "app/plan/part.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

/// From the end of one pass to that of the next. The first round of several flights fills the
/// stages: it does not count where whole rounds follow; else all count, filling included.
double seconds_between(const std::vector<SimulatedPass>& passes, int num_flights) {
  const auto flights = static_cast<std::size_t>(num_flights);
  const bool whole_rounds = flights > 1 && passes.size() >= 2 * flights;
  const std::size_t skipped = whole_rounds ? flights + passes.size() % flights : 0;
  double begin = 0, end = 0;
  for (std::size_t i = 0; i < passes.size(); ++i) {
    if (i == skipped) begin = end;
    end = std::max(end, passes[i].end);
  }
  return (end - begin) / static_cast<double>(passes.size() - skipped);
}

/// What is divided over passes that count.
void add_result(const std::vector<int>& ranks, int num_ranks, double passes,
                const SimulationResult& result, PassPrice& price) {
  price.shares.add(result.shares);
  const auto n = static_cast<std::size_t>(num_ranks);
  for (std::size_t a = 0; a < ranks.size(); ++a) {
    const auto from = static_cast<std::size_t>(ranks[a]);
    price.rank_shares[from] = result.rank_shares[a];
    price.waited_for[from] = result.waited_for[a];
    for (std::size_t b = 0; b < ranks.size(); ++b) {
      price.bytes[from * n + static_cast<std::size_t>(ranks[b])] +=
          result.bytes[a * ranks.size() + b] / passes;
    }
  }
  for (std::size_t l = 0; l < price.link_bytes.size(); ++l) {
    price.link_bytes[l] += result.link_bytes[l] / passes;
  }
  price.transfer_s.insert(price.transfer_s.end(), result.transfer_s.begin(),
                          result.transfer_s.end());
  price.events += result.events;
  price.shared += result.shared;
  price.steps.insert(price.steps.end(), result.steps.begin(), result.steps.end());
}

}  // namespace

LayoutPricer::LayoutPricer(const LayoutSetup& setup)
    : s_(setup), groups_(setup.job), network_(*setup.machine, setup.job.num_ranks()) {
  const int network = s_.job.num_ranks() / s_.job.division().replicas;
  for (int rank = 0; rank < network; ++rank) {
    const compute::Part part = part_of(s_.job, s_.placement, *s_.shape, rank, s_.output);
    const auto costs = [&](compute::OutputCut cut) {
      return StepCosts(*s_.machine, *s_.shape, s_.dtype, part, cut);
    };
    const bool either = s_.output == compute::OutputCut::either;
    costs_by_columns_.push_back(costs(either ? compute::OutputCut::columns : s_.output));
    costs_by_rows_.push_back(costs(either ? compute::OutputCut::rows : s_.output));
  }
}

Schedule LayoutPricer::schedule(int stage, int num_chunks, const PassForm& form) const {
  const Division& division = s_.job.division();
  const LayerRange layers = layers_of_stage(s_.shape->num_layers, stage, division.pp);
  StageSteps steps;
  steps.route = form.route;
  steps.first_layer = layers.first;
  steps.end_layer = layers.end;
  steps.attention_shared = division.tp > 1;
  steps.output = s_.output == compute::OutputCut::either ? form.output : s_.output;
  steps.experts_shared = division.expert_tp > 1;
  steps.sequences_shared = division.tp * division.pp > 1;
  Schedule schedule = s_.overlap ? overlapped_schedule(*s_.shape, num_chunks, steps)
                                 : serial_schedule(*s_.shape, num_chunks, steps);
  verify(schedule, *s_.shape);
  return schedule;
}

RoutedRows LayoutPricer::rows_of(const PassLoad& load) const {
  std::vector<int> all(groups_.of(Share::exchange).members.size());
  std::iota(all.begin(), all.end(), 0);
  return {groups_, *s_.shape, s_.placement, *s_.routing, load, all};
}

PricedPasses LayoutPricer::model(const StageSteps& form, const std::vector<PassLoad>& loads,
                                 const std::vector<RoutedRows>& rows) const {
  const bool by_rows = form.output == compute::OutputCut::rows;
  return PricedPasses({groups_, *s_.machine, *s_.shape, s_.dtype, s_.placement, form,
                       by_rows ? costs_by_rows_ : costs_by_columns_, loads, rows,
                       s_.first_message_bytes});
}

/// Networks that share a link with one another are simulated together.
std::vector<std::vector<int>> LayoutPricer::components() const {
  const auto& networks = groups_.of(Share::network).members;
  std::vector<std::size_t> root(networks.size());
  std::iota(root.begin(), root.end(), std::size_t{0});
  const auto find = [&](std::size_t i) {
    while (root[i] != i) i = root[i];
    return i;
  };
  std::vector<std::int32_t> first(static_cast<std::size_t>(network_.num_links()), -1);
  for (std::size_t n = 0; n < networks.size(); ++n) {
    for (const int from : networks[n]) {
      for (const int to : networks[n]) {
        if (from == to) continue;
        const auto path = network_.path(from, to);
        for (const std::int32_t link : path.all()) {
          std::int32_t& other = first[static_cast<std::size_t>(link)];
          if (other < 0) other = static_cast<std::int32_t>(n);
          root[find(n)] = find(static_cast<std::size_t>(other));
        }
      }
    }
  }
  std::vector<std::vector<int>> components(networks.size());
  for (std::size_t n = 0; n < networks.size(); ++n) {
    auto& ranks = components[find(n)];
    ranks.insert(ranks.end(), networks[n].begin(), networks[n].end());
  }
  std::erase_if(components, [](const auto& ranks) { return ranks.empty(); });
  return components;
}

SimulatorSetup LayoutPricer::simulator_setup(const std::vector<Schedule>& schedules,
                                             std::size_t num_passes,
                                             const SimulationDetail& detail) const {
  SimulatorSetup setup;
  for (const Schedule& of_stage : schedules) setup.schedules.emplace_back(num_passes, &of_stage);
  setup.groups = &groups_;
  setup.machine = s_.machine;
  setup.network = &network_;
  setup.num_passes = static_cast<int>(num_passes);
  setup.num_flights = s_.num_flights;
  setup.flights_at_once = flights_of_stage(s_.num_flights, s_.job.division().pp);
  setup.merge_senders = detail.merge_senders;
  setup.grain = detail.grain;
  setup.keep_steps = detail.keep_steps;
  return setup;
}

PassPrice LayoutPricer::price(const std::vector<PassLoad>& loads, const PassForm& form,
                              const SimulationDetail& detail) const {
  const int num_ranks = s_.job.num_ranks();
  std::vector<Schedule> schedules;
  for (int stage = 0; stage < s_.job.division().pp; ++stage) {
    schedules.push_back(schedule(stage, loads.front().num_chunks, form));
  }
  const SimulatorSetup setup = simulator_setup(schedules, loads.size(), detail);
  PassPrice price;
  price.rank_shares.resize(static_cast<std::size_t>(num_ranks));
  price.waited_for.resize(price.rank_shares.size());
  price.bytes.resize(price.rank_shares.size() * price.rank_shares.size());
  price.link_bytes.resize(static_cast<std::size_t>(network_.num_links()));
  auto parts = components();
  const auto networks_alike = static_cast<double>(detail.first_network ? parts.size() : 1);
  if (detail.first_network) parts.resize(1);
  std::vector<SimulationResult> results(parts.size());
  std::vector<PassPrice> needs(parts.size());
  in_parallel(parts.size(), detail.threads, [&](std::size_t i) {
    std::vector<int> exchanges;
    for (const int rank : parts[i]) exchanges.push_back(groups_.group_of(Share::exchange, rank));
    std::sort(exchanges.begin(), exchanges.end());
    exchanges.erase(std::unique(exchanges.begin(), exchanges.end()), exchanges.end());
    std::vector<RoutedRows> rows;
    for (const PassLoad& load : loads) {
      rows.emplace_back(groups_, *s_.shape, s_.placement, *s_.routing, load, exchanges);
    }
    const PricedPasses model = this->model(schedules.front().stage, loads, rows);
    SimulatorSetup own = setup;
    own.model = &model;
    own.ranks = parts[i];
    if (!detail.bound) results[i] = Simulator(own).run();
    add_needs(model, schedules, loads, parts[i], needs[i]);
  });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!detail.bound) {
      price.seconds = std::max(price.seconds, seconds_between(results[i].passes, s_.num_flights));
      add_result(parts[i], num_ranks, static_cast<double>(loads.size()), results[i], price);
    }
    price.flops += needs[i].flops * networks_alike;
    price.arithmetic_limit_s += needs[i].arithmetic_limit_s * networks_alike / num_ranks;
    price.busiest_arithmetic_s =
        std::max(price.busiest_arithmetic_s, needs[i].busiest_arithmetic_s);
  }
  if (detail.bound) price.seconds = price.busiest_arithmetic_s;
  std::sort(price.transfer_s.begin(), price.transfer_s.end());
  add_limits(price);
  return price;
}

void LayoutPricer::add_bytes(const PassLoad& load, const PassForm& form,
                             std::vector<double>& bytes) const {
  const auto n = static_cast<std::size_t>(s_.job.num_ranks());
  const std::vector<PassLoad> loads = {load};
  std::vector<RoutedRows> rows;
  rows.push_back(rows_of(load));
  std::vector<Message> messages;
  for (int stage = 0; stage < s_.job.division().pp; ++stage) {
    const Schedule schedule = this->schedule(stage, load.num_chunks, form);
    const PricedPasses model = this->model(schedule.stage, loads, rows);
    for (Step step : schedule.steps) {
      if (!is_exchange(step.kind) || step.kind == StepKind::receive) continue;
      const Share share = share_of(step.kind, schedule.stage.route);
      if (share == Share::pipe) step.layer = static_cast<std::int16_t>(stage);
      for (std::size_t group = 0; group < groups_.of(share).members.size(); ++group) {
        const std::vector<int>& members = groups_.members(share, static_cast<int>(group));
        if (share != Share::pipe && s_.job.stage_of(members.front()) != stage) continue;
        messages.clear();
        model.messages(share, static_cast<int>(group), 0, step, messages);
        for (const Message& m : messages) {
          const auto from = static_cast<std::size_t>(members[static_cast<std::size_t>(m.from)]);
          const auto to = static_cast<std::size_t>(members[static_cast<std::size_t>(m.to)]);
          bytes[from * n + to] += m.row_bytes;
        }
      }
    }
  }
}

/// Of a pass, on average.
void LayoutPricer::add_needs(const PricedPasses& model, const std::vector<Schedule>& schedules,
                             const std::vector<PassLoad>& loads, const std::vector<int>& ranks,
                             PassPrice& price) const {
  const auto passes = static_cast<double>(loads.size());
  for (const int rank : ranks) {
    double reached = 0;
    for (const Step& step : schedules[static_cast<std::size_t>(s_.job.stage_of(rank))].steps) {
      if (is_exchange(step.kind)) continue;
      for (int pass = 0; pass < static_cast<int>(loads.size()); ++pass) {
        const StepNeeds needs = model.needs(rank, pass, step);
        price.flops += needs.flops / passes;
        price.arithmetic_limit_s += std::max(needs.flops / s_.machine->peak_flops_per_s,
                                             needs.bytes / s_.machine->peak_bytes_per_s) /
                                    passes;
        reached += model.seconds(rank, pass, step) / passes;
      }
    }
    price.busiest_arithmetic_s = std::max(price.busiest_arithmetic_s, reached);
  }
}

void LayoutPricer::add_limits(PassPrice& price) const {
  for (int link = 0; link < network_.num_links(); ++link) {
    const double bytes = price.link_bytes[static_cast<std::size_t>(link)];
    const double seconds = bytes / network_.capacity(link);
    if (seconds <= price.link_limit_s) continue;
    price.link_limit_s = seconds;
    price.busiest_link = network_.name(link);
    price.busiest_link_bytes = bytes;
  }
}

}  // namespace atl
