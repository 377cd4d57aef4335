#include "compute/cuda/plan/weight_memory.hpp"

#include "compute/cuda/plan/kv.hpp"
#include "compute/weight_cut.hpp"

namespace atl::compute::cuda {

WeightMemory::WeightMemory(const BackendOptions& options, Arena& arena)
    : layers(static_cast<std::size_t>(options.shape.num_layers)) {
  const ModelShape& shape = options.shape;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].experts.resize(options.part.experts[i].size());
  }
  for_each_weight(shape, options.part, [&](const WeightInfo& whole, int, int local_expert) {
    const WeightInfo info = own_weight(shape, options.part, whole);
    if (info.coding.used()) {
      take_codes(info, *matrix_place(info, local_expert), arena);
    } else if (info.use == Use::vector) {
      *vector_place(info, local_expert) = arena.take<float>(info.rows);
    } else {
      *matrix_place(info, local_expert) =
          arena.take_bytes(static_cast<std::size_t>(info.num_elements()) * size_of(options.dtype));
    }
  });
  for (std::size_t i = 0; i < shape.num_ropes(); ++i) {
    const int dims = shape.rope(i).dims;
    angles.push_back({arena.take<float>(std::int64_t{num_positions(options)} * dims), dims});
  }
  const auto ints = [&](const std::vector<std::int32_t>& values) {
    return arena.take<std::int32_t>(static_cast<std::int64_t>(values.size()));
  };
  for (const ExpertPlaces& kind : options.part.places) {
    places.push_back({ints(kind.first_of_expert), arena.take<ReplicaPlace>(kind.num_places()),
                      ints(kind.first_of_node)});
  }
}

void WeightMemory::take_codes(const WeightInfo& info, void*& place, Arena& arena) {
  const Coding& coding = info.coding;
  const auto rows = static_cast<std::size_t>(info.rows);
  place = arena.take_bytes(rows * static_cast<std::size_t>(coding.row_bytes(info.cols)));
  const void* scales = arena.take_bytes(
      rows * static_cast<std::size_t>(coding.groups(info.cols) * coding.scale_bytes()));
  // Where memory is only counted there is nothing to find again.
  if (place != nullptr) {
    codes[place] = {place, scales, coding, DType::bfloat16, info.rows, info.cols};
  }
}

float** WeightMemory::vector_place(const WeightInfo& info, int local_expert) {
  if (info.id == Weight::final_norm) return &final_norm;
  CudaLayer& weights = layers[static_cast<std::size_t>(info.layer)];
  CudaMlp& mlp =
      local_expert >= 0 ? weights.experts[static_cast<std::size_t>(local_expert)] : weights.dense;
  switch (info.id) {
    case Weight::attention_norm:
      return &weights.attention_norm;
    case Weight::ffn_norm:
      return &weights.ffn_norm;
    case Weight::q_norm:
      return &weights.q_norm;
    case Weight::qkv_bias:
      return &weights.qkv_bias;
    case Weight::output_bias:
      return &weights.output_bias;
    case Weight::sinks:
      return &weights.sinks;
    case Weight::up_bias:
      return &mlp.up_bias;
    case Weight::gate_bias:
      return &mlp.gate_bias;
    case Weight::down_bias:
      return &mlp.down_bias;
    case Weight::q_latent_norm:
      return &weights.q_latent_norm;
    case Weight::kv_latent_norm:
      return &weights.kv_latent_norm;
    case Weight::router_bias:
      return &weights.router_bias;
    case Weight::selection_bias:
      return &weights.selection_bias;
    default:
      return &weights.k_norm;
  }
}

void** WeightMemory::matrix_place(const WeightInfo& info, int local_expert) {
  if (info.id == Weight::embedding) return &embedding;
  if (info.id == Weight::lm_head) return &lm_head;
  CudaLayer& weights = layers[static_cast<std::size_t>(info.layer)];
  CudaMlp& mlp =
      local_expert >= 0 ? weights.experts[static_cast<std::size_t>(local_expert)] : weights.dense;
  switch (info.id) {
    case Weight::qkv:
      return &weights.qkv;
    case Weight::o:
      return &weights.o;
    case Weight::q_up:
      return &weights.q_up;
    case Weight::k_up:
      return &weights.k_up;
    case Weight::v_up:
      return &weights.v_up;
    case Weight::router:
      return &weights.router;
    case Weight::up:
      return &mlp.up;
    case Weight::gate:
      return &mlp.gate;
    case Weight::shared_up:
      return &weights.shared.up;
    case Weight::shared_gate:
      return &weights.shared.gate;
    case Weight::shared_down:
      return &weights.shared.down;
    case Weight::shared_router:
      return &weights.shared_router;
    default:
      return &mlp.down;
  }
}

}  // namespace atl::compute::cuda
