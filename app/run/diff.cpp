#include "app/run/diff.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "compute/error.hpp"
#include "io/activation_file.hpp"

namespace atl {

namespace {

constexpr std::int64_t block_elements = 1 << 20;  // compared at once

/// A request that both files have, and how many positions saw the same tokens in both.
struct CommonRequest {
  std::size_t in_a = 0;
  std::size_t in_b = 0;
  std::int64_t rows = 0;
};

struct Common {
  std::vector<CommonRequest> requests;
  std::size_t computed_a = 0;  ///< requests that have tokens
  std::size_t computed_b = 0;
  std::size_t in_both = 0;    ///< of them, those with one id in both
  std::int64_t diverged = 0;  ///< of these, those whose tokens differ somewhere
};

/// Those that were computed. A line that was refused has no tokens, and may have no id or that of
/// another line.
std::map<std::string, std::size_t> by_name(const io::ActivationReader& file) {
  std::map<std::string, std::size_t> all;
  for (std::size_t r = 0; r < file.layout().requests.size(); ++r) {
    if (file.num_rows(r) > 0) all.emplace(file.layout().requests[r], r);
  }
  return all;
}

Common common_requests(io::ActivationReader& a, io::ActivationReader& b) {
  const auto of_a = by_name(a);
  const auto of_b = by_name(b);
  Common common;
  common.computed_a = of_a.size();
  common.computed_b = of_b.size();
  for (std::size_t r = 0; r < a.layout().requests.size(); ++r) {
    const auto own = of_a.find(a.layout().requests[r]);
    const auto found = of_b.find(a.layout().requests[r]);
    if (own == of_a.end() || own->second != r || found == of_b.end()) continue;
    ++common.in_both;
    const auto tokens_a = a.tokens(r);
    const auto tokens_b = b.tokens(found->second);
    const auto [end_a, end_b] =
        std::mismatch(tokens_a.begin(), tokens_a.end(), tokens_b.begin(), tokens_b.end());
    if (end_a != tokens_a.end() || end_b != tokens_b.end()) ++common.diverged;
    const auto rows = static_cast<std::int64_t>(end_a - tokens_a.begin());
    if (rows > 0) common.requests.push_back({r, found->second, rows});
  }
  return common;
}

double difference_of(float a, float b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
  const double difference = std::abs(static_cast<double>(a) - static_cast<double>(b));
  return std::isfinite(difference) ? difference : std::numeric_limits<double>::infinity();
}

/// Adds one block of rows of a request to a layer's figures; `mean` and `rms` are sums so far.
void add_block(std::span<const float> a, std::span<const float> b, std::int64_t hidden,
               const std::string& request, std::int64_t first_position, LayerDifference& sum) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = difference_of(a[i], b[i]);
    sum.mean += difference;
    sum.rms += static_cast<double>(a[i]) * static_cast<double>(a[i]);
    if (difference > sum.largest) {
      sum.largest = difference;
      sum.request = request;
      sum.position = first_position + static_cast<std::int64_t>(i) / hidden;
    }
  }
}

LayerDifference compare_layer(io::ActivationReader& a, std::size_t layer_a, io::ActivationReader& b,
                              std::size_t layer_b, const Common& common) {
  const std::int64_t hidden = a.layout().hidden;
  const std::int64_t rows_at_once = std::max<std::int64_t>(1, block_elements / hidden);
  LayerDifference result;
  result.layer = a.layout().layers[layer_a];
  std::vector<float> x_a;
  std::vector<float> x_b;
  for (const CommonRequest& request : common.requests) {
    for (std::int64_t row = 0; row < request.rows; row += rows_at_once) {
      const std::int64_t rows = std::min(rows_at_once, request.rows - row);
      x_a.resize(static_cast<std::size_t>(rows * hidden));
      x_b.resize(x_a.size());
      a.read(layer_a, request.in_a, row, rows, x_a);
      b.read(layer_b, request.in_b, row, rows, x_b);
      add_block(x_a, x_b, hidden, a.layout().requests[request.in_a], row, result);
      result.rows += rows;
    }
  }
  const double elements = static_cast<double>(result.rows) * static_cast<double>(hidden);
  result.mean /= elements;
  result.rms = std::sqrt(result.rms / elements);
  return result;
}

void require_comparable(const io::ActivationReader& a, const io::ActivationReader& b) {
  require(a.layout().hidden == b.layout().hidden,
          "cannot compare {} with {}: their tokens are {} and {} wide; give runs of like models",
          a.path(), b.path(), a.layout().hidden, b.layout().hidden);
}

/// The id of the first request that was computed; one was.
const std::string& first_computed(const io::ActivationReader& file) {
  std::size_t r = 0;
  while (file.num_rows(r) == 0) ++r;
  return file.layout().requests[r];
}

/// Why no position of any request can be compared.
std::string why_nothing(const io::ActivationReader& a, const io::ActivationReader& b,
                        const Common& common) {
  for (const std::size_t computed : {common.computed_a, common.computed_b}) {
    if (computed > 0) continue;
    return fmt::format("the {} has no request that was computed",
                       common.computed_a == 0 ? "first" : "second");
  }
  if (common.in_both == 0) {
    return fmt::format("no id is in both (the first of A is \"{}\", of B \"{}\")",
                       first_computed(a), first_computed(b));
  }
  return fmt::format("{} ids are in both, but no first token is the same", common.in_both);
}

std::vector<LayerDifference> compare(io::ActivationReader& a, io::ActivationReader& b,
                                     const Common& common) {
  require(!common.requests.empty(), "cannot compare {} with {}: {}; give runs of the same requests",
          a.path(), b.path(), why_nothing(a, b, common));
  std::vector<LayerDifference> layers;
  const auto& of_b = b.layout().layers;
  for (std::size_t i = 0; i < a.layout().layers.size(); ++i) {
    const auto found = std::find(of_b.begin(), of_b.end(), a.layout().layers[i]);
    if (found == of_b.end()) continue;
    layers.push_back(
        compare_layer(a, i, b, static_cast<std::size_t>(found - of_b.begin()), common));
  }
  require(!layers.empty(), "cannot compare {} with {}: no layer is in both", a.path(), b.path());
  return layers;
}

}  // namespace

std::vector<LayerDifference> compare_activations(io::ActivationReader& a, io::ActivationReader& b) {
  require_comparable(a, b);
  return compare(a, b, common_requests(a, b));
}

void diff_activations(const DiffOptions& options) {
  io::ActivationReader a(options.a);
  io::ActivationReader b(options.b);
  require_comparable(a, b);
  const Common common = common_requests(a, b);
  const auto layers = compare(a, b, common);
  if (common.in_both < std::max(common.computed_a, common.computed_b)) {
    fmt::print("{} has {} requests and {} has {}: the {} whose id is in both are compared\n",
               options.a, common.computed_a, options.b, common.computed_b, common.in_both);
  }
  fmt::print(
      "{} requests, {} tokens compared; {} requests have other tokens from some position "
      "on\n{:>6} {:>12} {:>12} {:>12}  largest at\n",
      common.requests.size(), layers.front().rows, common.diverged, "layer", "largest", "mean",
      "rms of A");
  for (const LayerDifference& layer : layers) {
    const std::string where = layer.largest > 0 ? fmt::format("request \"{}\", position {}",
                                                              layer.request, layer.position)
                                                : "-";
    fmt::print("{:>6} {:>12.4g} {:>12.4g} {:>12.4g}  {}\n", layer.layer, layer.largest, layer.mean,
               layer.rms, where);
  }
  require(std::fflush(stdout) == 0, "cannot write the comparison to standard output");
  const auto first = std::find_if(layers.begin(), layers.end(), [&](const LayerDifference& layer) {
    return layer.largest > options.tolerance;
  });
  if (first == layers.end()) return;
  fail(
      "{} and {} differ by more than {} from layer {} on (there by {:.4g} at most, in request "
      "\"{}\" at position {})",
      options.a, options.b, options.tolerance, first->layer, first->largest, first->request,
      first->position);
}

}  // namespace atl
