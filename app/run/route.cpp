#include "app/run/route.hpp"

#include <algorithm>

#include "app/model/model_config.hpp"
#include "compute/across_rows.hpp"

namespace atl {

namespace {

/// Nodes between which rows of experts go.
int most_nodes(const JobLayout& job) {
  int most = 1;
  for (const std::vector<int>& members : job.of(Share::exchange).members) {
    most = std::max(most, job.exchange_of(members.front()).num_nodes());
  }
  return most;
}

}  // namespace

bool may_take(const RunOptions& options, const JobLayout& job, Route route) {
  if (most_nodes(job) == 1) return route == Route::flat;
  return options.route.value_or(route) == route;
}

int most_flights(const RunOptions& options, const JobLayout& job) {
  const int stages = job.division().pp;
  return stages == 1 || options.no_overlap ? 1 : stages * options.chunks.value_or(2);
}

int most_chunks(const RunOptions& options, const JobLayout& job) {
  if (options.chunks) return *options.chunks;
  if (job.ranks_of_stage() == 1) return 1;
  return most_nodes(job) == 1 ? 2 : max_chunks;
}

PassFacts pass_facts(const Groups& groups, const RunOptions& options, const ModelShape& shape,
                     const compute::BackendOptions& backend, const Cluster* cluster, bool cuda) {
  const Layout layout = groups.job().exchange_of(0);  // others may differ, and all decide alike
  PassFacts facts;
  for (const Route route : {Route::flat, Route::nodes}) {
    if (may_take(options, groups.job(), route)) facts.routes.push_back(route);
  }
  if (most_flights(options, groups.job()) > 1) {
    facts.chunk_counts = {1};
  } else if (options.chunks) {
    facts.chunk_counts = {*options.chunks};
  } else {
    for (int count = 1; count <= most_chunks(options, groups.job()); count *= 2) {
      facts.chunk_counts.push_back(count);
    }
  }
  facts.min_chunk_tokens = std::min(options.min_chunk_tokens, backend.max_chunk_tokens);
  facts.most_chunk_tokens = backend.max_chunk_tokens;
  facts.num_ranks = layout.num_ranks();
  facts.num_nodes = layout.num_nodes();
  for (const auto& node : layout.of(Share::node).members) {
    facts.ranks_of_node = std::max(facts.ranks_of_node, static_cast<int>(node.size()));
  }
  facts.num_experts = std::max(1, shape.num_experts);
  facts.top_k = std::max(1, shape.top_k);
  facts.moe_layers =
      static_cast<int>(std::count(shape.layer_is_dense.begin(), shape.layer_is_dense.end(), false));
  facts.row_bytes = shape.hidden * static_cast<std::int64_t>(size_of(backend.dtype));
  facts.across_row_bytes = compute::across_row(shape.hidden, backend.dtype, shape.top_k).bytes;
  const auto link = [](const std::optional<comm::LinkSpeed>& speed) {
    return speed ? PassLink{speed->latency_s, speed->node_bytes_per_s} : PassLink{};
  };
  if (cluster != nullptr) {
    facts.inside = link(cluster->links.inside);
    facts.between = link(cluster->links.between);
  }
  // Operations for each element read, over the bytes of one: of a server's core, of a H100.
  facts.balance_rows = cuda ? 300 : 12;
  const int threads = groups.world().broadcast_value(backend.num_threads, 0);  // ranks may differ
  const double guessed_flops = cuda ? 3e14 : 1e11 * threads;
  facts.guessed_s_per_row = gemm_flops_per_token(shape) / guessed_flops;
  return facts;
}

}  // namespace atl
