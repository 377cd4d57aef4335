// One layer on the GPU as the driver runs it: exact/, moe_layer/, prefill/ and decode/ of
// gpu_bench.

#include <fmt/format.h>
#include <omp.h>

#include <array>
#include <cstring>

#include "app/model/model_config.hpp"
#include "compute/clock.hpp"
#include "perf/gpu_bench.hpp"
#include "perf/gpu_layer.hpp"
#include "perf/table_line.hpp"

namespace atl::gpu_bench {
namespace {

/// One preset's layer on the GPU; a row's bits are checked with few and with many others.
class Layer {
 public:
  Layer(const Bench& bench, const std::string& name, int max_tokens, std::int64_t num_pages)
      : config_(one_layer(name + bench.sizes.suffix)), weights_(config_), most_(max_tokens) {
    backend_ = compute::make_cuda_backend(options_for(config_, max_tokens, num_pages, 2),
                                          {bench.device, 1, 0});
    load_layer(*backend_, config_, weights_);
    check_bits({std::min(48, max_tokens)});
  }

  compute::Backend& backend() { return *backend_; }
  const ModelConfig& config() const { return config_; }
  double seconds(compute::Event event) {
    backend_->finish(event);
    const compute::Interval i = backend_->interval(event);
    return i.end - i.begin;
  }

  /// The first tokens of a sequence alone, for each of these numbers of them, and the last ones
  /// after all before: bit by bit what all tokens together give, which is computed twice.
  void check_bits(const std::vector<int>& numbers) {
    const std::vector<float> all = run(*backend_, 0, most_);
    require_same(run(*backend_, 0, most_), all, 0, "all tokens once more");
    for (const int rows : numbers) {
      if (rows >= most_) continue;
      require_same(run(*backend_, 0, rows), all, 0, fmt::format("{} tokens alone", rows));
    }
    run(*backend_, 0, most_);  // the keys and values that the last ones attend to
    for (const int rows : numbers) {
      if (rows >= most_) continue;
      require_same(run(*backend_, most_ - rows, rows), all, most_ - rows,
                   fmt::format("the last {} tokens alone", rows));
    }
  }

  /// The mean difference of logits, whose deviation is 1, between the CPU backend's and this one's.
  double off_the_cpu() {
    const int rows = std::min(48, most_);
    compute::BackendOptions options =
        options_for(config_, rows, (rows + page_tokens - 1) / page_tokens, 1);
    options.num_threads = omp_get_max_threads();
    const auto cpu = compute::make_cpu_backend(options);
    load_layer(*cpu, config_, weights_);
    const double off = mean_difference(run(*backend_, 0, rows), run(*cpu, 0, rows));
    // Rounding to 8 bits at each step moves them by about 0.01; a token whose second and third
    // expert are nearly tied may go elsewhere and moves by more.
    constexpr double tolerance = 0.05;
    require(off < tolerance, "the layer's logits are {} off the CPU backend's on average", off);
    return off;
  }

 private:
  std::vector<float> run(compute::Backend& backend, int position, int rows) const {
    Passage passage(backend, config_);
    passage.fill(0, 1, rows, position, position + rows);
    backend.finish(passage.layer().back());
    return passage.logits(rows);
  }

  void require_same(const std::vector<float>& rows, const std::vector<float>& all, int first,
                    const std::string& what) const {
    const float* wanted = all.data() + static_cast<std::ptrdiff_t>(first) * vocab;
    std::size_t different = 0;
    for (std::size_t at = 0; at < rows.size(); at += vocab) {
      if (std::memcmp(rows.data() + at, wanted + at, vocab * sizeof(float)) != 0) ++different;
    }
    require(different == 0, "{}: {} of {} rows have other bits than among {} ({})", what, different,
            rows.size() / vocab, most_, backend_->description());
  }

  ModelConfig config_;
  Weights weights_;
  int most_;
  std::unique_ptr<compute::Backend> backend_;
};

std::int64_t pages_for(int tokens) {
  return (tokens + page_tokens - 1) / page_tokens;
}

void exact(benchmark::State& state, const Bench& bench, const std::string& name,
           const std::string& preset) {
  const int tokens = bench.sizes.tokens;
  Layer layer(bench, preset, tokens, pages_for(tokens));
  const std::string description = layer.backend().description();
  double off = 0;
  for (auto _ : state) {
    const double begin = now_seconds();
    layer.check_bits(bench.sizes.exact_rows);
    off = layer.off_the_cpu();
    state.SetIterationTime(now_seconds() - begin);
  }
  state.counters["off_the_cpu"] = off;
  perf::tell_fact(name, fmt::format("{:.4f} off CPU", off), description);
}

double expert_flops(const ModelShape& s, double tokens) {
  return tokens * s.top_k * 4.0 * s.hidden * s.moe_intermediate;
}

/// Of the weights of router and all experts.
double moe_weight_bytes(const ModelConfig& config) {
  const ModelShape& s = config.shape;
  return static_cast<double>(size_of(config.dtype)) * s.num_experts * s.hidden *
         (1 + 2.0 * s.moe_intermediate);
}

/// Seconds of a chunk's MoE part with two chunks in turn: one's counts come to the host while the
/// other's experts run.
double moe_rounds(Layer& layer, std::vector<Passage>& chunks, int count) {
  std::vector<compute::Event> routed(2);
  const double begin = now_seconds();
  for (std::size_t i = 0; i < 2; ++i) {
    chunks[i].embed();
    routed[i] = chunks[i].route();
  }
  compute::Event last = 0;
  for (int round = 0; round < count; ++round) {
    for (std::size_t i = 0; i < 2; ++i) {
      layer.backend().finish(routed[i]);
      chunks[i].experts();
      last = chunks[i].merge();
      if (round + 1 < count) {
        chunks[i].embed();
        routed[i] = chunks[i].route();
      }
    }
  }
  layer.backend().finish(last);
  return (now_seconds() - begin) / (2 * count);
}

void moe_layer(benchmark::State& state, const Bench& bench, const std::string& name,
               const std::string& preset) {
  const int tokens = bench.sizes.tokens;
  Layer layer(bench, preset, tokens, pages_for(tokens));
  const ModelShape& s = layer.config().shape;
  std::vector<Passage> chunks;
  for (int i = 0; i < 2; ++i) {
    chunks.emplace_back(layer.backend(), layer.config());
    chunks.back().fill(i, 1, tokens, 0, tokens);
  }
  moe_rounds(layer, chunks, 2);  // warms up
  double seconds = 0;
  for (auto _ : state) {
    seconds = moe_rounds(layer, chunks, bench.sizes.repetitions);
    state.SetIterationTime(seconds);
  }
  const double flops = expert_flops(s, tokens) + 2.0 * tokens * s.hidden * s.num_experts;
  const double rate = flops / seconds;
  state.counters["TFLOP_per_s"] = rate / 1e12;
  state.counters["of_best_gemm"] = rate / bench.gemm_rate;
  // Reading alone: about as fast as a copy, which reads and writes.
  const double bytes = moe_weight_bytes(layer.config());
  const double roofline =
      std::min(1.0, flops / bench.gemm_rate / std::max(bytes / bench.copy_rate, 1e-30));
  state.counters["roofline_of_best_gemm"] = roofline;
  tell(state, name, seconds, bench.floor(flops, bytes),
       fmt::format("{:.2f} of best GEMM, where {:.2f} is possible", rate / bench.gemm_rate,
                   roofline));
}

/// Seconds of one part of the layer, and what they would be at the device's measured rates.
struct Part {
  const char* name;
  double seconds;
  double ideal;
};

/// Adds up the parts and names the one that loses most.
std::string report(benchmark::State& state, const std::vector<Part>& parts) {
  const Part* largest = parts.data();
  std::string text;
  for (const Part& part : parts) {
    state.counters[fmt::format("{}_ms", part.name)] = part.seconds * 1e3;
    if (part.seconds - part.ideal > largest->seconds - largest->ideal) largest = &part;
    text += fmt::format("{} {:.3f} of {:.3f}, ", part.name, part.ideal * 1e3, part.seconds * 1e3);
  }
  return fmt::format("{}ms; largest loss: {}", text, largest->name);
}

/// Best of some runs of the whole layer; `events` holds those of the best run's steps.
double best_run(const Bench& bench, Layer& layer, Passage& passage,
                std::array<double, 4>& of_steps) {
  double best = 1e30;
  for (int i = 0; i <= bench.sizes.repetitions; ++i) {
    const double begin = now_seconds();
    const std::vector<compute::Event> events = passage.layer();
    layer.backend().finish(events.back());
    const double seconds = now_seconds() - begin;
    if (i == 0 || seconds >= best) continue;  // the first one warms up
    best = seconds;
    for (std::size_t step = 0; step < 4; ++step) of_steps[step] = layer.seconds(events[step]);
  }
  return best;
}

void prefill(benchmark::State& state, const Bench& bench, const std::string& name,
             const std::string& preset) {
  const int tokens = bench.sizes.prompt_tokens;
  Layer layer(bench, preset, tokens, pages_for(tokens));
  const ModelShape& s = layer.config().shape;
  Passage passage(layer.backend(), layer.config());
  passage.fill(0, 1, tokens, 0, tokens);
  std::array<double, 4> steps{};
  double best = 0;
  for (auto _ : state) {
    best = best_run(bench, layer, passage, steps);
    state.SetIterationTime(best);
  }
  const double projections = 2.0 * tokens * s.hidden * (2.0 * s.q_width() + 2.0 * s.kv_width());
  const double scores = 2.0 * tokens * (tokens + 1.0) * s.q_width();  // causal: half of 4 T^2
  const double router = 2.0 * tokens * s.hidden * s.num_experts;
  const double row_bytes = 2.0 * s.hidden * tokens;
  const double flops = projections + scores + router + expert_flops(s, tokens);
  const std::vector<Part> parts = {
      {"attention", steps[0], (projections + scores) / bench.gemm_rate},
      {"route", steps[1], row_bytes * (2 + s.top_k) / bench.copy_rate},
      {"experts", steps[2], bench.floor(expert_flops(s, tokens), moe_weight_bytes(layer.config()))},
      {"merge", steps[3], row_bytes * (4 + s.top_k) / bench.copy_rate}};
  double ideal = 0;
  for (const Part& part : parts) ideal += part.ideal;
  state.counters["tokens_per_s"] = tokens / best;
  state.counters["of_best_gemm"] = flops / best / bench.gemm_rate;
  tell(state, name, best, ideal, report(state, parts));
}

void decode(benchmark::State& state, const Bench& bench, const std::string& name,
            const std::string& preset, int context) {
  const Sizes& sizes = bench.sizes;
  const int capacity = context + page_tokens;
  const std::int64_t pages = std::int64_t{sizes.sequences} * pages_for(capacity);
  const int together = std::max(1, sizes.tokens / context);
  Layer layer(bench, preset, std::max(together * context, sizes.sequences), pages);
  const ModelShape& s = layer.config().shape;
  Passage passage(layer.backend(), layer.config());
  for (int first = 0; first < sizes.sequences; first += together) {
    passage.fill(first, std::min(together, sizes.sequences - first), context, 0, capacity);
    layer.backend().finish(passage.layer().back());
  }
  passage.fill(0, sizes.sequences, 1, context, capacity);
  std::array<double, 4> steps{};
  double best = 0;
  for (auto _ : state) {
    best = best_run(bench, layer, passage, steps);
    state.SetIterationTime(best);
  }
  const auto element = static_cast<double>(size_of(layer.config().dtype));
  const auto touched = static_cast<double>(std::count_if(
      passage.expert_counts().begin(), passage.expert_counts().end(), [](int n) { return n > 0; }));
  const double attention_bytes =
      element * (static_cast<double>(s.hidden) * (2.0 * s.q_width() + 2.0 * s.kv_width()) +
                 2.0 * sizes.sequences * (context + 1.0) * s.kv_width());
  const double expert_bytes = element * touched * 2.0 * s.hidden * s.moe_intermediate;
  const double router_bytes = element * s.num_experts * s.hidden;
  const double bytes = attention_bytes + expert_bytes + router_bytes;
  const std::string note =
      report(state, {{"attention", steps[0], attention_bytes / bench.copy_rate},
                     {"route", steps[1], router_bytes / bench.copy_rate},
                     {"experts", steps[2], expert_bytes / bench.copy_rate},
                     {"merge", steps[3], 0}});
  state.counters["tokens_per_s_per_layer"] = sizes.sequences / best;
  state.counters["of_copy"] = bytes / best / bench.copy_rate;
  tell(state, name, best, bytes / bench.copy_rate, note);
}

}  // namespace

void add_layers(Bench& bench) {
  const std::vector<std::string> presets = {"moe-16l", "moe-61l", "moe-4l"};
  using Measurement =
      void (*)(benchmark::State&, const Bench&, const std::string&, const std::string&);
  for (const auto& [kind, measure] : {std::pair<const char*, Measurement>{"exact", exact},
                                      {"moe_layer", moe_layer},
                                      {"prefill", prefill}}) {
    for (const std::string& preset : presets) {
      add(bench, fmt::format("{}/{}", kind, preset),
          [&bench, preset, measure = measure](benchmark::State& state, const std::string& name) {
            measure(state, bench, name, preset);
          });
    }
  }
  for (const std::string& preset : presets) {
    for (const int context : bench.sizes.contexts) {
      add(bench, fmt::format("decode/{}/{}", preset, context),
          [&bench, preset, context](benchmark::State& state, const std::string& name) {
            decode(state, bench, name, preset, context);
          });
    }
  }
}

}  // namespace atl::gpu_bench
