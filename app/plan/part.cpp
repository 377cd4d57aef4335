#include "app/plan/part.hpp"

namespace atl {

compute::Part part_of(const JobLayout& job, const Placement& placement, const ModelShape& shape,
                      int rank, compute::OutputCut output) {
  const auto place_in = [&](Share share) {
    return static_cast<int>(job.of(share).place_of[static_cast<std::size_t>(rank)]);
  };
  const Division& division = job.division();
  compute::Part part = placement.part_of(place_in(Share::exchange), shape, job.exchange_of(rank));
  const LayerRange layers = layers_of_stage(shape.num_layers, job.stage_of(rank), division.pp);
  part.first_layer = layers.first;
  part.end_layer = layers.end;
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    const bool here = layer >= layers.first && layer < layers.end;
    if (!here) part.experts[static_cast<std::size_t>(layer)].clear();
  }
  if (division.tp > 1) {
    part.attention = compute::share_attention(shape, division.tp, place_in(Share::owner), output);
  }
  if (division.expert_tp > 1) {
    part.expert_share = compute::share_experts(shape, division.expert_tp, place_in(Share::holder));
  }
  return part;
}

}  // namespace atl
