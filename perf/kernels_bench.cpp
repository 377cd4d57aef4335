// One rank's arithmetic, piece by piece: GEMM, router, packing rows for their experts and adding
// them up again, attention. Each checks its answer before it is timed. Under mpirun all ranks do
// the same at once and the slowest one's time counts.
//
//   build/cpu/perf/kernels_bench             about 20 seconds
//   build/cpu/perf/kernels_bench --tiny      seconds, for the tests

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <random>

#include "app/plan/placement.hpp"
#include "compute/clock.hpp"
#include "compute/cpu/kernels.hpp"
#include "perf/bench_main.hpp"
#include "perf/coded_gemm.hpp"
#include "perf/decode_attention.hpp"
#include "perf/layers_model.hpp"
#include "perf/machine.hpp"
#include "tests/tiny_model.hpp"

namespace atl::perf {
namespace {

using Values = std::vector<std::uint16_t>;

std::uint16_t to_bits(double value) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, testing::encode({value}, DType::bfloat16).data(), 2);
  return bits;
}

double to_value(std::uint16_t bits) {
  return testing::decode(&bits, 1, DType::bfloat16)[0];
}

Values random_values(std::size_t count, unsigned seed) {
  testing::Random random(seed, DType::bfloat16);
  Values values;
  for (const double v : random.vector(static_cast<int>(count), 0, 1)) values.push_back(to_bits(v));
  return values;
}

/// Registers a benchmark of `work`, which does `flops` operations and moves `bytes`.
void add(const comm::Communicator& world, const std::string& name, std::function<void()> work,
         double flops, double bytes, bool tiny) {
  benchmark::RegisterBenchmark(
      name.c_str(),
      [&world, work, flops, bytes, tiny](benchmark::State& state) {
        work();  // warms up
        double begin = now_seconds();
        work();
        const double once =
            over_ranks(world, now_seconds() - begin, comm::Communicator::Reduce::max);
        const int runs = tiny ? 2 : std::clamp(static_cast<int>(0.1 / once), 3, 10000);
        for (auto _ : state) {
          world.barrier();
          begin = now_seconds();
          for (int i = 0; i < runs; ++i) work();
          const double seconds =
              over_ranks(world, (now_seconds() - begin) / runs, comm::Communicator::Reduce::max);
          state.SetIterationTime(seconds);
          if (flops > 0) state.counters["value_GFLOP/s"] = flops / seconds / 1e9;
          if (bytes > 0) state.counters["value_GB/s"] = bytes / seconds / 1e9;
        }
      })
      ->Iterations(1)
      ->Repetitions(tiny ? 1 : 5)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

/// Few rows take another weight each time, as a decode step does, so that all come from memory.
void add_gemm(const comm::Communicator& world, int rows, int k, int n, int threads, bool tiny) {
  struct Gemm {
    std::unique_ptr<compute::Gemm> gemm;
    std::vector<compute::PackedWeight> weights;
    std::size_t next = 0;
    Values a;
    std::vector<float> c;
  };
  const auto g = std::make_shared<Gemm>();
  const auto size = [](int x, int y) {
    return static_cast<std::size_t>(x) * static_cast<std::size_t>(y);
  };
  const Values weight = random_values(size(n, k), 1);
  g->gemm = compute::make_gemm(DType::bfloat16, threads);
  constexpr int more_than_caches = 256 << 20;
  const int copies = tiny || rows > 16 ? 1 : 1 + more_than_caches / (2 * n * k);
  omp_set_num_threads(threads);
  for (int i = 0; i < copies; ++i) g->weights.push_back(g->gemm->pack(weight.data(), n, k));
  g->gemm->prepare(g->weights.front(), compute::Finish::float32);
  const int padded = (rows + compute::tile_rows - 1) / compute::tile_rows * compute::tile_rows;
  g->a = random_values(size(padded, k), 2);
  g->c.resize(size(padded, n));
  const auto work = [g, rows, threads] {
    omp_set_num_threads(threads);
    g->next = (g->next + 1) % g->weights.size();
    g->gemm->run(g->weights[g->next], g->a.data(), rows, g->c.data(), compute::Finish::float32);
  };
  work();
  for (const int row : {0, rows / 2, rows - 1}) {
    for (const int column : {0, n / 3, n - 1}) {
      double expected = 0;
      for (int i = 0; i < k; ++i) {
        expected += to_value(g->a[size(row, k) + static_cast<std::size_t>(i)]) *
                    to_value(weight[size(column, k) + static_cast<std::size_t>(i)]);
      }
      // Products of BF16 are exact in float32; sums of k of them lose a few units.
      const double got = g->c[size(row, n) + static_cast<std::size_t>(column)];
      require(std::abs(got - expected) < 1e-5 * k, "gemm: {} instead of {}", got, expected);
    }
  }
  add(world, fmt::format("gemm/{}x{}x{}/threads:{}", rows, k, n, threads), work, 2.0 * rows * k * n,
      2.0 * k * n, tiny);
}

void add_top_k(const comm::Communicator& world, int tokens, int experts, int top_k, bool tiny) {
  struct Router {
    std::vector<float> logits, scratch, weights;
    std::vector<std::int32_t> chosen;
  };
  const auto r = std::make_shared<Router>();
  const auto count = static_cast<std::size_t>(tokens * experts);
  for (const auto v : random_values(count, 3)) {
    r->logits.push_back(static_cast<float>(to_value(v)));
  }
  r->scratch.resize(count);
  r->weights.resize(static_cast<std::size_t>(tokens * top_k));
  r->chosen.resize(r->weights.size());
  const auto& kernels = compute::kernels_for(DType::bfloat16, compute::cpu_isa());
  const auto work = [=, &kernels] {
    r->scratch = r->logits;  // the kernel overwrites them
    static const atl::Router router;
    compute::ChooseArgs args;
    args.router = &router;
    args.num_experts = experts;
    args.top_k = top_k;
    for (int t = 0; t < tokens; ++t) {
      args.logits = r->scratch.data() + t * experts;
      args.experts = r->chosen.data() + t * top_k;
      args.weights = r->weights.data() + t * top_k;
      kernels.choose(args);
    }
  };
  work();
  for (int t = 0; t < tokens; ++t) {
    const auto first = r->logits.begin() + t * experts;
    std::vector<int> order(static_cast<std::size_t>(experts));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return first[a] > first[b]; });
    for (int j = 0; j < top_k; ++j) {
      require(
          r->chosen[static_cast<std::size_t>(t * top_k + j)] == order[static_cast<std::size_t>(j)],
          "router: token {} chose another expert than sorting does", t);
    }
  }
  add(world, fmt::format("router/{}x{}", tokens, experts), work, 0,
      4.0 * static_cast<double>(count), tiny);
}

/// The backend's route: norm, router, and rows packed in the order in which they are sent.
void add_pack(const comm::Communicator& world, int tokens, int hidden, bool tiny) {
  struct Pack {
    std::unique_ptr<compute::Backend> backend;
    std::unique_ptr<compute::Chunk> chunk;
    std::vector<std::int32_t> tokens, page{0};
    compute::Segment segment;
  };
  LayersOptions options;
  options.layers = 1;
  options.hidden = hidden;
  options.intermediate = 16;
  options.experts = 16;
  options.tokens = options.sequence = tokens;
  options.skew = "log-normal";
  const LayersModel model(options, one_node(1));
  const auto p = std::make_shared<Pack>();
  compute::BackendOptions backend;
  backend.shape = model.shape();
  backend.part = compute::whole_model(model.shape());
  backend.num_pages = 1;
  backend.max_chunk_tokens = tokens;
  p->backend = compute::make_cpu_backend(backend);
  model.load(*p->backend, backend.part);
  p->chunk = p->backend->make_chunk();
  p->tokens = model.requests(1).front().tokens;
  p->segment = {0, tokens, 0, p->page.data()};
  p->chunk->tokens = p->tokens;
  p->chunk->segments = {&p->segment, 1};
  p->backend->embed(*p->chunk);
  const auto work = [p] { p->backend->finish(p->backend->route(*p->chunk, 0)); };
  work();
  // Rows lie by expert and then by token, and carry the code of their token's two experts.
  const auto* row = static_cast<const std::uint16_t*>(p->chunk->dispatch_send);
  for (int expert = 0; expert < options.experts; ++expert) {
    for (const std::int32_t token : p->tokens) {
      std::vector<std::int32_t> counts(static_cast<std::size_t>(options.experts));
      model.count_rows(std::span(&token, 1), 0, counts);
      if (counts[static_cast<std::size_t>(expert)] == 0) continue;
      for (int code = 0; code < options.experts; ++code) {
        const bool mine = code == token / options.experts || code == token % options.experts;
        require((row[code] != 0) == mine, "pack: a row for expert {} is another token's", expert);
      }
      row += hidden;
    }
  }
  add(world, fmt::format("pack/{}x{}", tokens, hidden), work, 0, 4.0 * tokens * hidden * 2, tiny);
}

void add_unpack(const comm::Communicator& world, int tokens, int hidden, bool tiny) {
  struct Unpack {
    std::vector<float> x, start;
    Values rows;
    std::vector<std::int32_t> slots;
  };
  const auto u = std::make_shared<Unpack>();
  const auto count = static_cast<std::size_t>(tokens * hidden);
  for (const std::uint16_t value : random_values(count, 4)) {
    u->start.push_back(static_cast<float>(to_value(value)));
  }
  u->rows = random_values(2 * count, 5);
  u->slots.resize(static_cast<std::size_t>(2 * tokens));
  std::iota(u->slots.begin(), u->slots.end(), 0);
  std::shuffle(u->slots.begin(), u->slots.end(), std::mt19937(6));
  static constexpr std::array<float, 2> weights = {0.75F, 0.25F};
  const auto& kernels = compute::kernels_for(DType::bfloat16, compute::cpu_isa());
  const auto work = [=, &kernels] {
    u->x = u->start;
    for (int t = 0; t < tokens; ++t) {
      kernels.merge(u->x.data() + t * hidden, u->rows.data(), u->slots.data() + 2 * t,
                    weights.data(), 2, hidden);
    }
  };
  work();
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t t = i / static_cast<std::size_t>(hidden);
    const auto row = [&](std::size_t j) {
      return to_value(u->rows[static_cast<std::size_t>(u->slots[2 * t + j] * hidden) +
                              i % static_cast<std::size_t>(hidden)]);
    };
    const double sum = reference::to_bfloat16(0.75 * row(0) + 0.25 * row(1));
    const float expected = u->start[i] + static_cast<float>(sum);
    require(u->x[i] == expected, "unpack: {} instead of {}", u->x[i], expected);
  }
  add(world, fmt::format("unpack/{}x{}", tokens, hidden), work, 0,
      static_cast<double>(count) * (4 * sizeof(float) + 2 * sizeof(std::uint16_t)), tiny);
}

/// Attention with its projections: a prompt at once, or one new token of many sequences.
void add_attention(const comm::Communicator& world, int hidden, int sequences, int context,
                   bool decode, bool tiny) {
  ModelShape shape = testing::tiny_shape();
  shape.hidden = hidden;
  shape.num_layers = 1;
  shape.layer_is_dense = {true};
  shape.head_dim = 64;
  shape.num_heads = shape.num_kv_heads = hidden / 64;
  shape.max_positions = 2048;
  const auto model = testing::random_model(shape, DType::bfloat16, 7);
  testing::RankOptions options{.dtype = DType::bfloat16};
  options.max_chunk_tokens = std::max(sequences * context, 64);
  options.num_pages = sequences * (context / 64 + 2);
  const auto rank = std::make_shared<testing::SingleRank>(model, options);
  const auto check = testing::Random(8, DType::bfloat16).tokens(tiny ? 20 : 40, shape.vocab);
  const auto truth = reference::log_probs(model, check);
  const double own = testing::mean_difference(rank->log_probs(check, 64), truth);
  const double rounding =
      testing::mean_difference(reference::log_probs(model, check, reference::to_bfloat16), truth);
  require(own < 1.5 * rounding, "attention: off by {}, where rounding explains {}", own, rounding);

  const auto tokens = testing::Random(9, DType::bfloat16).tokens(sequences * context, shape.vocab);
  std::vector<testing::SingleRank::Piece> pieces;
  std::vector<testing::SingleRank::Piece> next;
  for (int s = 0; s < sequences; ++s) {
    const auto all = std::span(tokens).subspan(static_cast<std::size_t>(s * context),
                                               static_cast<std::size_t>(context));
    pieces.push_back({rank->add_sequence(), all});
    next.push_back({pieces.back().sequence, all.first(1)});
  }
  rank->set_chunk(pieces);
  rank->run_layers();
  rank->finish(rank->backend().embed(rank->chunk()));  // and all before it
  if (decode) {
    rank->set_chunk(next);
    rank->finish(rank->backend().embed(rank->chunk()));
  }
  const auto work = [rank] { rank->backend().finish(rank->backend().attention(rank->chunk(), 0)); };
  const double rows = static_cast<double>(sequences) * (decode ? 1 : context);
  const double keys = decode ? context : 0.5 * context;
  const double flops = rows * (8.0 * hidden * hidden + 4.0 * keys * hidden);
  const double bytes = 8.0 * hidden * hidden + (decode ? rows * keys * hidden * 4 : 0);
  add(world, fmt::format("attention_{}/{}x{}", decode ? "decode" : "prefill", sequences, context),
      work, flops, decode ? bytes : 0, tiny);
}

/// Attention of one new token of each sequence; `share_of_read` is the time to read its keys and
/// values over its own. The cache is filled only where the benchmark is chosen.
void add_decode(const comm::Communicator& world, const DecodeShape& shape, bool tiny) {
  const auto name =
      fmt::format("decode/{}:{}x{}/batch:{}/context:{}/threads:{}", shape.heads, shape.kv_heads,
                  shape.head_dim, shape.batch, shape.context, shape.threads);
  const auto run = [&world, shape, tiny](benchmark::State& state) {
    DecodeAttention decode(shape, tiny ? 0 : 256 << 20);
    const auto time = [&](int runs, const auto& work) {
      world.barrier();
      const double begin = now_seconds();
      for (int i = 0; i < runs; ++i) work();
      return over_ranks(world, (now_seconds() - begin) / runs, comm::Communicator::Reduce::max);
    };
    const auto step = [&] { decode.step(); };
    const auto read = [&] { decode.read(); };
    time(1, step);
    const double once = time(1, step);
    const int runs = tiny ? 2 : std::clamp(static_cast<int>(0.03 / once), 3, 3000);
    std::vector<double> steps, reads, shares;
    const auto median = [](std::vector<double>& values) {
      std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
      return values[values.size() / 2];
    };
    for (auto _ : state) {
      for (int i = 0; i < (tiny ? 1 : 9); ++i) {
        reads.push_back(time(runs, read));
        steps.push_back(time(runs, step));
        shares.push_back(reads.back() / steps.back());
      }
      state.SetIterationTime(median(steps));
    }
    state.counters["share_of_read"] = median(shares);
    state.counters["value_GB/s"] = static_cast<double>(decode.bytes()) / median(steps) / 1e9;
    state.counters["read_GB/s"] = static_cast<double>(decode.bytes()) / median(reads) / 1e9;
  };
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

/// Kept weights over BF16: the median of rounds that are taken in turn.
void add_coded(const comm::Communicator& world, Code code, int rows, int size, bool tiny) {
  const auto gemm = std::make_shared<CodedGemm>(code, rows, size, size, tiny ? 0 : 256 << 20);
  const auto run = [&world, gemm, tiny](benchmark::State& state) {
    std::vector<double> ratios;
    double kept = 0;
    for (auto _ : state) {
      for (int round = 0; round < (tiny ? 2 : 15); ++round) {
        world.barrier();
        const CodedGemm::Times times = gemm->once();
        ratios.push_back(times.plain / times.kept);
        kept = times.kept;
      }
      state.SetIterationTime(kept);
    }
    std::nth_element(ratios.begin(), ratios.begin() + std::ssize(ratios) / 2, ratios.end());
    state.counters["value_over_bf16"] = ratios[ratios.size() / 2];
  };
  const std::string name = fmt::format("coded/{}/{}x{}x{}", name_of(code), rows, size, size);
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->Iterations(1)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

void add_decodes(const comm::Communicator& world) {
  for (const int threads : {1, 2}) {
    for (const int batch : {1, 16}) {
      for (const int context : {256, 3000, 10000}) {
        add_decode(world, {16, 4, 64, batch, context, threads}, false);
        add_decode(world, {32, 8, 128, batch, context, threads}, false);
      }
    }
  }
}

void add_all(const comm::Communicator& world, bool tiny) {
  omp_set_num_threads(1);
  if (tiny) {
    add_gemm(world, 20, 64, 96, 2, tiny);
    add_coded(world, Code::fp8, 3, 160, tiny);
    add_top_k(world, 16, 16, 2, tiny);
    add_pack(world, 24, 64, tiny);
    add_unpack(world, 16, 64, tiny);
    add_attention(world, 128, 2, 16, false, tiny);
    add_attention(world, 128, 2, 16, true, tiny);
    add_decode(world, {8, 2, 64, 3, 600, 2}, tiny);
    return;
  }
  for (const int threads : {1, 2}) {
    for (const int rows : {1, 2, 3, 4, 5, 6, 8, 16, 32, 64, 128, 512}) {
      add_gemm(world, rows, 1024, 2816, threads, tiny);
    }
    add_gemm(world, 512, 2816, 1024, threads, tiny);
  }
  for (const Code code : {Code::fp8, Code::mxfp4, Code::int4}) {
    for (const int rows : {1, 4}) add_coded(world, code, rows, 2048, tiny);
  }
  omp_set_num_threads(1);
  add_top_k(world, 1024, 16, 2, tiny);
  add_top_k(world, 1024, 64, 2, tiny);
  add_pack(world, 64, 1024, tiny);
  add_unpack(world, 1024, 1024, tiny);
  add_attention(world, 512, 1, 512, false, tiny);
  add_attention(world, 512, 8, 512, true, tiny);
  add_decodes(world);
}

}  // namespace
}  // namespace atl::perf

int main(int argc, char** argv) {
  return atl::perf::bench_main("kernels_bench", argc, argv, atl::perf::add_all);
}
