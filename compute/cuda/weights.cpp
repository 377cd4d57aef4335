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

std::size_t scale_row_bytes(const CodedRows& coded) {
  return static_cast<std::size_t>(coded.coding.groups(coded.cols) * coded.coding.scale_bytes());
}

/// Cosines and sines of positions * frequencies, rounded from double.
void load_angles(const Rope& rope, int positions, float* device) {
  const int half = rope.dims / 2;
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
  if (!table.empty()) to_device(device, table);
}

}  // namespace

void CudaWeights::load(const BackendOptions& options, const WeightInfo& info, int local_expert,
                       const void* data) {
  const auto count = static_cast<std::size_t>(info.num_elements());
  if (info.use == Use::vector) {
    to_device(*vector_place(info, local_expert), data, count * sizeof(float));
  } else {
    to_device(*matrix_place(info, local_expert), data, count * size_of(options.dtype));
  }
}

void CudaWeights::load_codes(const WeightInfo& info, int local_expert, const HostTensor& tensor) {
  CodedRows& coded = codes.at(*matrix_place(info, local_expert));
  const auto rows = static_cast<std::size_t>(info.rows);
  coded.rounded = tensor.dtype;
  to_device(const_cast<void*>(coded.codes), tensor.data,
            rows * static_cast<std::size_t>(coded.coding.row_bytes(info.cols)));
  to_device(const_cast<void*>(coded.scales), tensor.scales, rows * scale_row_bytes(coded));
}

void CudaWeights::finish(const BackendOptions& options) {
  for (std::size_t i = 0; i < angles.size(); ++i) {
    load_angles(options.shape.rope(i), num_positions(options), angles[i].values);
  }
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

/// visit(device memory, bytes) of each matrix and vector of an expert.
template <class Visit>
void CudaWeights::for_parts(const BackendOptions& options, int layer, int local_expert,
                            const Visit& visit) const {
  const auto& experts = layers[static_cast<std::size_t>(layer)].experts;
  if (experts.empty()) return;
  const CudaMlp& mlp = experts[static_cast<std::size_t>(local_expert)];
  const auto bytes =
      static_cast<std::size_t>(std::int64_t{options.shape.hidden} * options.shape.moe_intermediate /
                               options.part.expert_share.members) *
      size_of(options.dtype);
  for (void* matrix : {mlp.up, mlp.gate, mlp.down}) {
    const auto coded = codes.find(matrix);
    if (coded != codes.end()) {
      const CodedRows& rows = coded->second;
      const auto count = static_cast<std::size_t>(rows.rows);
      visit(matrix, count * static_cast<std::size_t>(rows.coding.row_bytes(rows.cols)));
      visit(const_cast<void*>(rows.scales), count * scale_row_bytes(rows));
    } else if (matrix != nullptr) {
      visit(matrix, bytes);
    }
  }
  const auto members = static_cast<std::size_t>(options.part.expert_share.members);
  const auto inner = static_cast<std::size_t>(options.shape.moe_intermediate) / members;
  if (mlp.up_bias != nullptr) visit(mlp.up_bias, inner * sizeof(float));
  if (mlp.gate_bias != nullptr) visit(mlp.gate_bias, inner * sizeof(float));
  if (mlp.down_bias != nullptr) {
    visit(mlp.down_bias, static_cast<std::size_t>(options.shape.hidden) / members * sizeof(float));
  }
}

std::int64_t CudaWeights::expert_bytes(const BackendOptions& options, int layer) const {
  std::int64_t sum = 0;
  for_parts(options, layer, 0,
            [&](void*, std::size_t bytes) { sum += static_cast<std::int64_t>(bytes); });
  return sum;
}

void CudaWeights::read_expert(const BackendOptions& options, int layer, int local_expert,
                              std::span<std::byte> bytes) const {
  std::byte* to = bytes.data();
  for_parts(options, layer, local_expert, [&](void* part, std::size_t size) {
    check(cudaMemcpy(to, part, size, cudaMemcpyDeviceToHost), "cudaMemcpy");
    to += size;
  });
}

void CudaWeights::write_expert(const BackendOptions& options, int layer, int local_expert,
                               std::span<const std::byte> bytes) {
  const std::byte* from = bytes.data();
  for_parts(options, layer, local_expert, [&](void* part, std::size_t size) {
    to_device(part, from, size);
    from += size;
  });
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // as in finish()
}

}  // namespace atl::compute::cuda
