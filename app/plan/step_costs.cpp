#include "app/plan/step_costs.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace atl {

namespace {

/// Of points that rise, between the two beside `x`; outside, in proportion to the last of them.
double between_points(std::span<const double> xs, std::span<const double> ys, double x) {
  if (x <= xs.front()) return ys.front();
  if (x >= xs.back()) return ys.back() * x / xs.back();
  const auto above =
      static_cast<std::size_t>(std::upper_bound(xs.begin(), xs.end(), x) - xs.begin());
  const double part = (x - xs[above - 1]) / (xs[above] - xs[above - 1]);
  return ys[above - 1] + part * (ys[above] - ys[above - 1]);
}

}  // namespace

StepCosts::StepCosts(const Machine& machine, const ModelShape& shape, DType dtype,
                     const compute::Part& part, compute::OutputCut output)
    : machine_(machine),
      shape_(shape),
      element_(static_cast<double>(size_of(dtype))),
      share_(part.attention),
      heads_(compute::own_heads(shape, part.attention)),
      expert_members_(part.expert_share.members),
      output_(output) {}

double StepCosts::bytes_of(compute::Weight weight, int layer, double columns) const {
  const Coding coding = shape_.coding(weight, layer);
  if (!coding.used()) return element_;
  const auto cols = static_cast<std::int64_t>(columns);
  const std::int64_t scales = coding.groups(cols) * coding.scale_bytes();
  const double kept = static_cast<double>(coding.row_bytes(cols) + scales) / columns;
  return machine_.cuda ? kept + 2 * element_ : kept;
}

double StepCosts::bytes_of_mlp(compute::Weight gate, compute::Weight up, compute::Weight down,
                               int layer, double inner) const {
  const double last = bytes_of(up, layer, shape_.hidden) + bytes_of(down, layer, inner);
  if (matrices() == 2) return last / 2;
  return (bytes_of(gate, layer, shape_.hidden) + last) / 3;
}

double StepCosts::product(double rows, double depth, double columns, double bytes) const {
  if (rows <= 0 || columns <= 0) return 0;
  if (machine_.ladders.empty()) {
    // What is unpacked first is read and written before the product begins.
    const double before = std::max(0.0, bytes - element_);
    return depth * columns * before / machine_.bytes_per_s +
           std::max(2 * rows * depth * columns / machine_.flops_per_s,
                    depth * columns * (bytes - before) / machine_.bytes_per_s);
  }
  // The measured shape nearest in size; what differs counts in proportion.
  const GemmLadder* nearest = nullptr;
  double least = 0;
  for (const GemmLadder& ladder : machine_.ladders) {
    const double apart =
        std::abs(std::log(ladder.depth / depth)) + std::abs(std::log(ladder.columns / columns));
    if (nearest == nullptr || apart < least) {
      nearest = &ladder;
      least = apart;
    }
  }
  return between_points(nearest->rows, nearest->seconds, rows) * (depth * columns) /
         (nearest->depth * nearest->columns);
}

/// Keys and values, or latents, that segments see; a window hides those far back.
template <class Product, class Attend>
void StepCosts::attend_segments(const StepWork& work, const Product& product,
                                const Attend& attend) const {
  const AttentionKind kind = shape_.attention(std::max(0, work.layer));
  const LatentAttention& latent = shape_.latent;
  const auto window = static_cast<double>(kind.window);
  double rows = 0;
  for (const LoadSegment& segment : work.segments) {
    const double n = static_cast<double>(segment.rows);
    const double first = static_cast<double>(segment.first_position);
    double seen = first + (n + 1) / 2, read = first + n;
    if (window > 0) {
      seen = std::min(seen, window);
      read = std::min(read, window + n);
    }
    rows += n;
    // A prompt's tokens attend to expanded keys and values, generated ones to latents.
    const bool by_latents = latent.used() && n == 1;
    const double widths = by_latents ? heads_.num_heads * (2.0 * latent.keys + latent.rope)
                                     : heads_.q_width() + heads_.heads_width();
    const double of_token = latent.used()
                                ? latent.width()
                                : heads_.num_kv_heads() * (shape_.head_dim + shape_.values_dim());
    attend(n, first, 2 * n * seen * widths, read * of_token * element_);
  }
  if (!latent.used()) return;
  if (latent.queries > 0) {
    product(rows, latent.queries, heads_.q_width(),
            bytes_of(compute::Weight::q_up, work.layer, latent.queries));
  }
  product(rows, latent.keys,
          heads_.num_heads * (shape_.head_dim - latent.rope) + heads_.heads_width(), element_);
}

/// Names what a step does: products(rows, depth, columns, bytes of an element), attend(rows,
/// context, flops, bytes), rows(bytes).
template <class Product, class Attend, class Rows>
void StepCosts::visit(StepKind kind, const StepWork& work, const Product& product,
                      const Attend& attend, const Rows& rows) const {
  const double own = static_cast<double>(work.own_rows);
  const double all = static_cast<double>(work.all_rows);
  const double hidden = shape_.hidden;
  const double row = hidden * element_;
  constexpr double stream = sizeof(float);  // of the residual stream
  const double moved = static_cast<double>(work.moved_rows) * row;
  using compute::Weight;
  const int layer = work.layer;
  const double qkv_bytes = bytes_of(Weight::qkv, layer, hidden);
  const double o_bytes = bytes_of(Weight::o, layer, shape_.heads_width());
  const auto attention = [&] { attend_segments(work, product, attend); };
  const auto experts = [&](double columns_of_hidden, double bytes) {
    double count = 0;
    for (const std::int64_t r : work.expert_rows) {
      product(static_cast<double>(r), hidden, columns_of_hidden, bytes);
      count += static_cast<double>(r);
    }
    rows(count * (row + columns_of_hidden * element_));
  };
  const double inner = shape_.moe_intermediate / expert_members_;
  switch (kind) {
    case StepKind::embed:
      return rows(own * (row + hidden * stream));
    case StepKind::attention:
      product(own, hidden, projected(), qkv_bytes);
      attention();
      product(own, shape_.heads_width(), hidden, o_bytes);
      return rows(own * (2 * row + 2 * hidden * stream));
    case StepKind::norm:
      return rows(own * (row + hidden * stream));
    case StepKind::project:
      return product(all, hidden, projected(), qkv_bytes);
    case StepKind::attend:
      return attention();
    case StepKind::output:
      if (output_ == compute::OutputCut::rows) {
        return product(own, shape_.heads_width(), hidden, o_bytes);
      }
      if (compute::is_sum(output_)) return product(all, heads_.heads_width(), hidden, o_bytes);
      return product(all, shape_.heads_width(), hidden / share_.members, o_bytes);
    case StepKind::add:
      return rows(own * (compute::is_sum(output_) ? share_.members : 1) * row +
                  2 * own * hidden * stream);
    case StepKind::mlp:
      product(own, hidden, matrices() * shape_.intermediate,
              bytes_of_mlp(Weight::gate, Weight::up, Weight::down, layer, shape_.intermediate));
      return rows(own * (2 * row + 2 * hidden * stream + shape_.intermediate * element_));
    case StepKind::shared_expert:
      product(own, hidden, matrices() * shape_.shared_intermediate,
              bytes_of_mlp(Weight::shared_gate, Weight::shared_up, Weight::shared_down, layer,
                           shape_.shared_intermediate));
      return rows(own * (2 * row + 2 * hidden * stream));
    case StepKind::route:
      product(own, hidden, shape_.num_experts, element_);
      return rows(own * (row + hidden * stream) + moved);
    case StepKind::experts:
      return experts(matrices() * inner, bytes_of_mlp(Weight::gate, Weight::up, Weight::down, layer,
                                                      shape_.moe_intermediate));
    case StepKind::up:
      return experts((matrices() - 1) * inner, bytes_of(Weight::up, layer, hidden));
    case StepKind::down:
      for (const std::int64_t r : work.expert_rows) {
        product(static_cast<double>(r), shape_.moe_intermediate, hidden / expert_members_,
                bytes_of(Weight::down, layer, shape_.moe_intermediate));
      }
      return;
    case StepKind::regroup:
    case StepKind::collect:
    case StepKind::write:
    case StepKind::fold:
      return rows(2 * moved);
    case StepKind::merge:
      return rows(moved + 2 * own * hidden * stream);
    case StepKind::head:
      product(static_cast<double>(work.head_rows), hidden, shape_.vocab, element_);
      return;
    default:
      return;
  }
}

double StepCosts::seconds(StepKind kind, const StepWork& work) const {
  double seconds = 0;
  visit(
      kind, work,
      [&](double rows, double depth, double columns, double bytes) {
        seconds += product(rows, depth, columns, bytes);
      },
      [&](double rows, double context, double flops, double bytes) {
        seconds += std::max(flops / machine_.flops_per_s, bytes / machine_.bytes_per_s) *
                   machine_.attention_over_bound(rows, context);
      },
      [&](double bytes) {
        if (machine_.row_bytes_per_s > 0) seconds += bytes / machine_.row_bytes_per_s;
      });
  return seconds * experts_factor(kind, work.expert_rows);
}

/// Experts together take longer than their products one by one, the more the less even they are.
double StepCosts::experts_factor(StepKind kind, std::span<const std::int64_t> rows) const {
  const bool experts = kind == StepKind::experts || kind == StepKind::up || kind == StepKind::down;
  const auto all = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  if (!experts || all == 0) return 1;
  const auto most = static_cast<double>(*std::max_element(rows.begin(), rows.end()));
  return machine_.experts_over_products(most * static_cast<double>(rows.size()) /
                                        static_cast<double>(all));
}

StepNeeds StepCosts::needs(StepKind kind, const StepWork& work) const {
  StepNeeds needs;
  visit(
      kind, work,
      [&](double rows, double depth, double columns, double bytes) {
        if (rows <= 0) return;
        needs.flops += 2 * rows * depth * columns;
        needs.bytes += depth * columns * bytes;
      },
      [&](double, double, double flops, double bytes) {
        needs.flops += flops;
        needs.bytes += bytes;
      },
      [](double) {});
  return needs;
}

}  // namespace atl
