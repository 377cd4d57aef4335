#include "compute/cuda/weights.hpp"

#include <cmath>
#include <vector>

#include "compute/convert.hpp"
#include "compute/cuda/error.hpp"
#include "compute/cuda/plan/kv.hpp"

namespace atl::compute::cuda {

namespace {

void to_device(void* device, const void* host, std::size_t bytes) {
  check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

template <class T>
void to_device(T* device, const std::vector<T>& host) {
  to_device(device, host.data(), host.size() * sizeof(T));
}

}  // namespace

void CudaWeights::load(const BackendOptions& options, const WeightInfo& info, int local_expert,
                       const void* data) {
  const auto count = static_cast<std::size_t>(info.num_elements());
  if (info.use == Use::vector) {
    to_device(*vector_place(info), data, count * sizeof(float));
  } else {
    to_device(*matrix_place(info, local_expert), data, count * size_of(options.dtype));
  }
}

void CudaWeights::finish(const BackendOptions& options) {
  const ModelShape& shape = options.shape;
  const Rope rope = shape.rope(0);
  const int half = rope.dims / 2;
  const int positions = num_positions(options);
  std::vector<float> table(static_cast<std::size_t>(positions) *
                           static_cast<std::size_t>(rope.dims));
  for (int i = 0; i < half; ++i) {
    const double frequency = rope.frequencies[static_cast<std::size_t>(i)];
    for (int position = 0; position < positions; ++position) {
      const auto row = static_cast<std::size_t>(position) * static_cast<std::size_t>(rope.dims);
      const double angle = position * frequency;
      table[row + static_cast<std::size_t>(i)] = static_cast<float>(rope.factor * std::cos(angle));
      table[row + static_cast<std::size_t>(half + i)] =
          static_cast<float>(rope.factor * std::sin(angle));
    }
  }
  if (!table.empty()) to_device(angles, table);
  for (std::size_t kind = 0; kind < places.size(); ++kind) load_places(options, kind);
  // Copies from pageable memory may return before they are done, and the backend's streams do not
  // wait for the default one.
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void CudaWeights::load_places(const BackendOptions& options, std::size_t kind) {
  const ExpertPlaces& from = options.part.places[kind];
  const CudaPlaces& to = places[kind];
  to_device(to.first_of_expert, from.first_of_expert);
  to_device(to.replicas, from.replicas);
  to_device(to.first_of_node, from.first_of_node);
}

/// visit(device memory, bytes) of each matrix of an expert.
template <class Visit>
void CudaWeights::for_matrices(const BackendOptions& options, int layer, int local_expert,
                               const Visit& visit) const {
  const auto& experts = layers[static_cast<std::size_t>(layer)].experts;
  if (experts.empty()) return;
  const CudaMlp& mlp = experts[static_cast<std::size_t>(local_expert)];
  const auto bytes =
      static_cast<std::size_t>(std::int64_t{options.shape.hidden} * options.shape.moe_intermediate /
                               options.part.expert_share.members) *
      size_of(options.dtype);
  for (void* matrix : {mlp.up, mlp.gate, mlp.down}) {
    if (matrix != nullptr) visit(matrix, bytes);
  }
}

std::int64_t CudaWeights::expert_bytes(const BackendOptions& options, int layer) const {
  std::int64_t sum = 0;
  for_matrices(options, layer, 0,
               [&](void*, std::size_t bytes) { sum += static_cast<std::int64_t>(bytes); });
  return sum;
}

void CudaWeights::read_expert(const BackendOptions& options, int layer, int local_expert,
                              std::span<std::byte> bytes) const {
  std::byte* to = bytes.data();
  for_matrices(options, layer, local_expert, [&](void* matrix, std::size_t size) {
    check(cudaMemcpy(to, matrix, size, cudaMemcpyDeviceToHost), "cudaMemcpy");
    to += size;
  });
}

void CudaWeights::write_expert(const BackendOptions& options, int layer, int local_expert,
                               std::span<const std::byte> bytes) {
  const std::byte* from = bytes.data();
  for_matrices(options, layer, local_expert, [&](void* matrix, std::size_t size) {
    to_device(matrix, from, size);
    from += size;
  });
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // as in finish()
}

}  // namespace atl::compute::cuda
