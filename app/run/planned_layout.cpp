#include "app/run/planned_layout.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <thread>

#include "app/plan/job_walk.hpp"
#include "app/plan/layer_sample.hpp"
#include "app/plan/output_choice.hpp"
#include "app/run/placement_file.hpp"
#include "app/run/planned_memory.hpp"
#include "app/run/rank_sizes.hpp"
#include "app/run/route.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

/// Rows go with their counters up to this size, where they lie in host memory; see ChunkMoves.
constexpr double first_message_of_hosts = 4000;

/// What a layer's cache keeps of a token.
double kv_elements(const ModelShape& shape) {
  if (shape.latent.used()) return shape.latent.width();
  return shape.num_kv_heads * (shape.head_dim + shape.values_dim());
}

/// All passes of a job, without their loads.
struct WalkedJob {
  std::vector<PassCount> counts;
  std::array<std::vector<std::int64_t>, 2> of_phase;  // numbers of passes
  std::vector<RequestPasses> requests;
};

WalkedJob walk(const JobLimits& limits, const std::vector<JobRequest>& requests) {
  JobWalk job(limits, requests);
  WalkedJob walked;
  PassCount count;
  while (job.next(1, count, nullptr)) {
    walked.of_phase[static_cast<std::size_t>(count.phase)].push_back(
        static_cast<std::int64_t>(walked.counts.size()));
    walked.counts.push_back(count);
  }
  walked.requests = job.requests();
  return walked;
}

/// Passes that follow one another.
struct Window {
  std::int64_t first = 0;
  std::int64_t count = 1;
  bool has(std::int64_t pass) const { return pass >= first && pass < first + count; }
};

/// The loads of the passes of each window, by its first.
std::map<std::int64_t, std::vector<PassLoad>> loads_at(const JobLimits& limits,
                                                       const std::vector<JobRequest>& requests,
                                                       const std::vector<Window>& windows,
                                                       int chunks) {
  std::map<std::int64_t, std::vector<PassLoad>> found;
  std::int64_t end = 0;
  for (const Window& window : windows) end = std::max(end, window.first + window.count);
  JobWalk job(limits, requests);
  PassCount ignored;
  PassLoad load;
  for (std::int64_t pass = 0; pass < end; ++pass) {
    const auto has = [pass](const Window& window) { return window.has(pass); };
    const bool wanted = std::any_of(windows.begin(), windows.end(), has);
    if (!job.next(chunks, ignored, wanted ? &load : nullptr)) break;
    std::vector<std::int64_t> taken;  // windows may begin alike
    for (const Window& window : windows) {
      if (!window.has(pass)) continue;
      if (std::find(taken.begin(), taken.end(), window.first) != taken.end()) continue;
      taken.push_back(window.first);
      found[window.first].push_back(load);
    }
  }
  return found;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(std::floor(at));
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - std::floor(at));
}

/// Works out a layout whose ranks have memory for it.
class LayoutPlanner {
 public:
  LayoutPlanner(const PlanInput& input, const JobLayout& job, const JobLimits& limits,
                const PlanDetail& detail, PlannedLayout& layout)
      : in_(input),
        job_(job),
        limits_(limits),
        detail_(detail),
        out_(layout),
        seconds_of_row_(gemm_flops_per_token(input.config.shape) / input.machine.flops_per_s),
        walked_(walk(limits, input.work.requests)) {
    const LayoutSetup& setup = pricer().setup();
    if (detail.some_layers && LayerSample::pays(*setup.shape, job.division().pp)) {
      some_layers_.emplace(setup);
    }
  }

  void plan() {
    for (const Phase phase : {Phase::prefill, Phase::decode}) plan_phase(phase);
    add_up();
    if (detail_.count_bytes) count_bytes();
  }

 private:
  const LayoutPricer& pricer() const { return *out_.pricer; }
  PassPrice price(const std::vector<PassLoad>& loads, const PassForm& form,
                  const SimulationDetail& detail) const {
    return some_layers_ ? some_layers_->price(loads, form, detail)
                        : pricer().price(loads, form, detail);
  }
  /// The passes that are simulated for one of them: of several flights also those that fill the
  /// stages before it and keep them full, of the same phase as far as there are.
  Window window_at(std::int64_t pass) const {
    const std::int64_t wanted = limits_.num_flights > 1 ? 3 * limits_.num_flights : 1;
    const auto phase_of = [this](std::int64_t at) {
      return walked_.counts[static_cast<std::size_t>(at)].phase;
    };
    Window window{pass, 1};
    const std::int64_t all = std::ssize(walked_.counts);
    const auto behind = [&] { return window.first + window.count; };
    while (window.count < wanted && behind() < all && phase_of(behind()) == phase_of(pass)) {
      ++window.count;
    }
    while (window.count < wanted && window.first > 0 &&
           phase_of(window.first - 1) == phase_of(pass)) {
      --window.first;
      ++window.count;
    }
    return window;
  }

  /// About what a pass takes beside what all passes of its phase take: passes in between two
  /// simulated ones lie on a line over it.
  double work_of(const PassCount& count) const {
    const ModelShape& shape = in_.config.shape;
    const double element = static_cast<double>(size_of(in_.dtype));
    const double of_position =
        shape.num_layers *
        (count.phase == Phase::decode
             ? kv_elements(shape) * element / in_.machine.bytes_per_s
             : 2.0 * (shape.q_width() + shape.heads_width()) / in_.machine.flops_per_s);
    return static_cast<double>(count.most_rows) * seconds_of_row_ + count.positions * of_position;
  }
  double work_of(std::int64_t pass) const {
    return work_of(walked_.counts[static_cast<std::size_t>(pass)]);
  }

  /// Passes to be simulated: those with least and most work, and between them evenly apart.
  std::vector<std::int64_t> sampled(std::vector<std::int64_t> passes, Phase phase) const {
    std::stable_sort(passes.begin(), passes.end(),
                     [this](std::int64_t a, std::int64_t b) { return work_of(a) < work_of(b); });
    const int wanted = detail_.samples[static_cast<std::size_t>(phase)];
    if (wanted == 1) return {passes[passes.size() / 2]};
    const double least = work_of(passes.front()), most = work_of(passes.back());
    std::vector<std::int64_t> found;
    for (int i = 0; i < wanted; ++i) {
      const double target = least + (most - least) * i / (wanted - 1);
      const auto at =
          std::min_element(passes.begin(), passes.end(), [&](std::int64_t a, std::int64_t b) {
            return std::abs(work_of(a) - target) < std::abs(work_of(b) - target);
          });
      if (std::find(found.begin(), found.end(), *at) == found.end()) found.push_back(*at);
    }
    return found;
  }

  std::vector<PassForm> forms(std::int64_t rows, int chunks) const {
    std::vector<PassForm> forms;
    for (const Route route : {Route::flat, Route::nodes}) {
      if (!may_take(in_.run, job_, route)) continue;
      PassForm form{route, pricer().setup().output};
      constexpr double balance_rows_of_gpus = 300, balance_rows_of_cpus = 12;  // see PassFacts
      if (form.output == compute::OutputCut::either) {
        form.output = output_of_pass(
            rows, chunks, in_.machine.cuda ? balance_rows_of_gpus : balance_rows_of_cpus);
      }
      forms.push_back(form);
    }
    return forms;
  }

  /// As many chunks as a pass may be cut into: with room for its tokens, and these not too few.
  std::vector<int> chunk_counts(std::int64_t most_rows) const {
    if (limits_.num_flights > 1) return {1};
    const int most = chunk_count(most_rows, limits_);
    if (in_.run.chunks) return {most};
    const std::int64_t room = std::int64_t{out_.memory.room.max_chunk_tokens} * job_.division().tp;
    std::vector<int> counts;
    for (int count = 1; count <= most || counts.empty(); count *= 2) {
      const bool fits = (most_rows + count - 1) / count <= room;
      if (fits || count >= limits_.max_chunks) counts.push_back(count);
    }
    return counts;
  }

  /// What a pass takes that would like `wanted`: at most as many, unless it has no room in them.
  int fitted_chunks(std::int64_t most_rows, int wanted) const {
    const std::vector<int> counts = chunk_counts(most_rows);
    int found = counts.front();
    for (const int count : counts) {
      if (count <= wanted) found = count;
    }
    return found;
  }

  /// Each form in more and more chunks, while that gets better; the best of all.
  void choose_form(const PassCount& count, const Window& window, PlannedPhase& phase) {
    const std::int64_t rows = (count.most_rows + job_.division().tp - 1) / job_.division().tp;
    if (detail_.coarse.bound) {
      phase.form = forms(rows, 1).front();
      return;
    }
    double best = 0;
    for (std::size_t f = 0; f < forms(rows, 1).size(); ++f) {
      double before = 0;
      for (const int chunks : chunk_counts(count.most_rows)) {
        const PassForm form = forms(rows, chunks)[f];
        const auto loads = loads_at(limits_, in_.work.requests, {window}, chunks);
        const double seconds = price(loads.begin()->second, form, detail_.coarse).seconds;
        phase.tried.push_back({form, chunks, seconds});
        if (best == 0 || seconds < best) {
          best = seconds;
          phase.form = form;
          phase.chunks = chunks;
        }
        if (before > 0 && seconds > 1.02 * before) break;
        before = seconds;
      }
    }
  }

  int chunks_of(std::int64_t pass, const PlannedPhase& phase) const {
    return fitted_chunks(walked_.counts[static_cast<std::size_t>(pass)].most_rows, phase.chunks);
  }

  void plan_phase(Phase which) {
    PlannedPhase& phase = out_.phases[static_cast<std::size_t>(which)];
    const std::vector<std::int64_t>& passes = walked_.of_phase[static_cast<std::size_t>(which)];
    if (passes.empty()) return;
    phase.passes = std::ssize(passes);
    for (const std::int64_t pass : passes) {
      const PassCount& count = walked_.counts[static_cast<std::size_t>(pass)];
      phase.prompt_tokens += count.prompt_tokens;
      phase.new_tokens += count.new_tokens;
      phase.rows += count.rows;
    }
    const std::vector<std::int64_t> simulated = sampled(passes, which);
    const std::int64_t middle = simulated[simulated.size() / 2];
    choose_form(walked_.counts[static_cast<std::size_t>(middle)], window_at(middle), phase);
    std::map<int, std::vector<Window>> windows;  // by chunks
    for (const std::int64_t pass : simulated) {
      windows[chunks_of(pass, phase)].push_back(window_at(pass));
    }
    std::map<std::int64_t, std::vector<PassLoad>> loads;  // by first pass
    for (const auto& [chunks, of_chunks] : windows) {
      loads.merge(loads_at(limits_, in_.work.requests, of_chunks, chunks));
    }
    for (const std::int64_t pass : simulated) {
      SimulationDetail fine = detail_.fine;
      fine.keep_steps = fine.keep_steps && pass == middle;
      const std::vector<PassLoad>& of_window = loads.at(window_at(pass).first);
      PassPrice price = this->price(of_window, phase.form, fine);
      phase.samples.push_back({pass, work_of(pass), price.seconds});
      if (pass != middle) continue;
      phase.price = std::move(price);
      phase.load = of_window.back();
    }
  }

  double seconds_of(const PlannedPhase& phase, double work) const {
    const auto& samples = phase.samples;
    if (work <= samples.front().work) return samples.front().seconds;
    for (std::size_t i = 1; i < samples.size(); ++i) {
      if (work > samples[i].work) continue;
      const PlannedPhase::Sample& a = samples[i - 1];
      const PlannedPhase::Sample& b = samples[i];
      return a.seconds + (b.seconds - a.seconds) * (work - a.work) / (b.work - a.work);
    }
    return samples.back().seconds;
  }

  void add_up() {
    std::vector<double> end(walked_.counts.size());
    double at = 0;
    for (std::size_t pass = 0; pass < end.size(); ++pass) {
      const auto p = static_cast<std::size_t>(walked_.counts[pass].phase);
      PlannedPhase& phase = out_.phases[p];
      const double seconds = seconds_of(phase, work_of(walked_.counts[pass]));
      phase.seconds += seconds;
      at += seconds;
      // A pass of several flights takes as many turns.
      end[pass] = at + seconds * (limits_.num_flights - 1);
    }
    out_.seconds = end.empty() ? 0 : end.back();
    std::vector<double> first, each;
    for (std::size_t r = 0; r < walked_.requests.size(); ++r) {
      const RequestPasses& passes = walked_.requests[r];
      const double begin = end[static_cast<std::size_t>(passes.first)];
      first.push_back(begin);
      const std::int64_t tokens = in_.work.requests[r].new_tokens;
      if (tokens > 1 && passes.last >= 0) {
        each.push_back((end[static_cast<std::size_t>(passes.last)] - begin) /
                       static_cast<double>(tokens - 1));
      }
    }
    out_.ttft_median_s = quantile(first, 0.5);
    out_.ttft_p99_s = quantile(first, 0.99);
    out_.tpot_median_s = quantile(each, 0.5);
    out_.tpot_p99_s = quantile(each, 0.99);
  }

  /// Bytes of all passes, where these are few enough.
  void count_bytes() {
    constexpr std::int64_t most_messages = 100'000'000;
    const std::int64_t ranks = job_.num_ranks();
    const std::int64_t messages = std::ssize(walked_.counts) * in_.config.shape.num_layers * 2 *
                                  ranks * job_.ranks_of_exchange();
    if (messages > most_messages) return;
    out_.bytes.resize(static_cast<std::size_t>(ranks * ranks));
    JobWalk walk(limits_, in_.work.requests);
    PassLoad load;
    PassCount ignored;
    for (const PassCount& count : walked_.counts) {
      const PlannedPhase& phase = out_.of(count.phase);
      walk.next(fitted_chunks(count.most_rows, phase.chunks), ignored, &load);
      pricer().add_bytes(load, phase.form, out_.bytes);
    }
  }

  const PlanInput& in_;
  const JobLayout& job_;
  JobLimits limits_;
  const PlanDetail& detail_;
  PlannedLayout& out_;
  double seconds_of_row_;  // of all its products
  WalkedJob walked_;
  std::optional<LayerSample> some_layers_;
};

}  // namespace

double PlannedLayout::tokens_per_s() const {
  double tokens = 0;
  for (const PlannedPhase& phase : phases) {
    tokens += static_cast<double>(phase.prompt_tokens + phase.new_tokens);
  }
  return seconds > 0 ? tokens / seconds : 0;
}

PlanDetail detail_for(int num_ranks) {
  PlanDetail detail;
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  detail.fine.threads = detail.coarse.threads = cores;
  detail.coarse.merge_senders = true;
  detail.coarse.grain = 0.05;
  // The time of passes over prompts is about a line in their number, so that two do.
  constexpr int some = 64, many = 256, very_many = 1024;
  if (num_ranks > some) {
    detail.fine.grain = 0.02;
    detail.samples = {2, 4};
  }
  if (num_ranks > many) {
    detail.fine = detail.coarse;
    detail.coarse.first_network = true;
  }
  if (num_ranks > very_many) {
    detail.samples = {1, 1};
    detail.samples = {1, 2};
  }
  return detail;
}

std::string layout_name(const Division& division, int num_ranks) {
  const int network = num_ranks / division.replicas;
  const int exchange = network / division.pp / division.expert_tp;
  std::string name = fmt::format("ep{}", exchange);
  if (division.expert_tp > 1) name += fmt::format("-etp{}", division.expert_tp);
  if (division.tp > 1) name += fmt::format("-tp{}", division.tp);
  if (division.pp > 1) name += fmt::format("-pp{}", division.pp);
  if (division.replicas > 1) name += fmt::format("-dp{}", division.replicas);
  return name;
}

PlannedLayout plan_layout(const PlanInput& input, const Division& division,
                          const PlanDetail& detail) {
  const ModelShape& shape = input.config.shape;
  require_divides(division, shape);
  const JobLayout job(division, input.machine.nodes_of(input.ranks));
  LayoutSetup setup;
  setup.machine = &input.machine;
  setup.shape = &shape;
  setup.dtype = input.dtype;
  setup.job = job;
  setup.placement = placement_of(input.run, shape, job.exchange_of(0));
  setup.routing = &input.routing;
  const PlannedSizes sizes = planned_sizes(input, job, setup.placement);
  PlannedLayout layout;
  layout.division = division;
  layout.memory = sizes.memory;
  layout.flights = sizes.batch.num_flights > 1;
  layout.bound = detail.fine.bound;
  if (!layout.memory.fits()) return layout;
  setup.output = input.run.tp_output.value_or(
      layout.memory.whole_output ? compute::OutputCut::either : compute::OutputCut::columns);
  setup.num_flights = sizes.batch.num_flights;
  setup.overlap = !input.run.no_overlap;
  setup.first_message_bytes = input.machine.cuda ? 0 : first_message_of_hosts;
  layout.pricer.emplace(setup);
  JobLimits limits;
  static_cast<ChunkLimits&>(limits) = sizes.batch;
  limits.num_owners = job.num_owners();
  limits.num_flights = sizes.batch.num_flights;
  limits.max_sequences = sizes.batch.max_sequences;
  limits.page_tokens = page_tokens;
  limits.num_pages = sizes.memory.pages;
  limits.scoring = input.work.scoring;
  LayoutPlanner(input, job, limits, detail, layout).plan();
  return layout;
}

}  // namespace atl
