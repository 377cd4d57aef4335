#include "app/model/init.hpp"

#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "app/model/tensors.hpp"
#include "comm/watchdog.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/model_file.hpp"

namespace atl {
namespace {

/// The first rank flushes the whole file to disk at the end, while the others wait.
constexpr double closing_s = 3600;

/// The finaliser of SplitMix64: every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

/// Sum of the four 16-bit pieces, centred: an integer, so that no rounding depends on order.
int centred_sum(std::uint64_t bits) {
  const std::uint64_t pairs = (bits & 0x0000ffff0000ffffU) + ((bits >> 16) & 0x0000ffff0000ffffU);
  return static_cast<int>((pairs & 0xffffffffU) + (pairs >> 32)) - 2 * 65535;
}

std::uint64_t key_of(std::uint64_t seed, std::string_view name) {
  std::string text(sizeof seed, '\0');
  std::memcpy(text.data(), &seed, sizeof seed);
  text += name;
  return io::checksum_of(std::as_bytes(std::span(text)));
}

template <class Element, class Round>
void fill(std::uint64_t key, std::int64_t first, float scale, std::span<std::byte> bytes,
          Round round) {
  const std::size_t elements = bytes.size() / sizeof(Element);
  for (std::size_t i = 0; i < elements; ++i) {
    const std::uint64_t index = static_cast<std::uint64_t>(first) + i;
    const float value =
        static_cast<float>(centred_sum(mix(key ^ (index * 0x9e3779b97f4a7c15U)))) * scale;
    const Element element = round(value);
    std::memcpy(bytes.data() + i * sizeof(Element), &element, sizeof(Element));
  }
}

bool is_norm(const TensorInfo& tensor) {
  using compute::Weight;
  switch (tensor.weight) {
    case Weight::attention_norm:
    case Weight::ffn_norm:
    case Weight::q_norm:
    case Weight::k_norm:
    case Weight::final_norm:
    case Weight::q_latent_norm:
    case Weight::kv_latent_norm:
      return true;
    default:
      return false;
  }
}

/// Deviation that keeps activations near unit size: matrices sum over their last dimension, an
/// embedding over nothing.
double deviation_of(const TensorInfo& tensor) {
  if (tensor.weight == compute::Weight::embedding) return 1.0;
  // Vectors beside norms are added to numbers of unit size.
  if (tensor.shape.size() == 1 || tensor.shape.back() == 1) return 0.1;
  return 1.0 / std::sqrt(static_cast<double>(tensor.shape.back()));
}

void fill_ones(DType dtype, std::span<std::byte> bytes) {
  const std::vector<float> ones(bytes.size() / size_of(dtype), 1.0F);
  compute::convert(std::as_bytes(std::span(ones)), DType::float32, bytes, dtype);
}

}  // namespace

void fill_random(std::uint64_t seed, std::string_view name, std::int64_t first, double deviation,
                 DType dtype, std::span<std::byte> bytes) {
  // Four uniform integers 0..65535 have the variance 4 (65536^2 - 1) / 12.
  const auto scale = static_cast<float>(deviation / std::sqrt((65536.0 * 65536.0 - 1.0) / 3.0));
  const std::uint64_t key = key_of(seed, name);
  switch (dtype) {
    case DType::bfloat16:
      return fill<std::uint16_t>(key, first, scale, bytes, compute::bfloat16_of);
    case DType::float16:
      return fill<std::uint16_t>(key, first, scale, bytes, compute::float16_of);
    case DType::float32:
      return fill<float>(key, first, scale, bytes, [](float value) { return value; });
    case DType::uint8:
      fail("internal: there are no random codes");
  }
}

void init_model(const ModelConfig& config, std::uint64_t seed, const std::string& output, int rank,
                int num_ranks, int mpi_comm_f) {
  require(config.shape.codings.empty(),
          "cannot make a model of weights that are kept as codes, as its configuration's "
          "\"kept_kinds\" says; take the key away, or import such a model with --weights keep");
  const std::vector<TensorInfo> tensors = tensors_of(config);
  std::vector<io::ModelFileWriter::Dataset> datasets;
  for (const TensorInfo& t : tensors) {
    datasets.push_back({t.path, t.shape, t.per_expert, t.dtype});
  }
  std::optional<io::ModelFileWriter> writer;
  {
    const comm::Waiting waiting("creating the model file");
    writer.emplace(output, config.to_json(), config.dtype, datasets, mpi_comm_f);
  }
  try {
    std::vector<std::byte> slab_bytes;
    std::int64_t counter = 0;  // slabs of all tensors are dealt out in turn
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const io::DatasetInfo slab_info{
          tensors[i].path, tensors[i].shape, tensors[i].dtype, {}, tensors[i].per_expert};
      for (std::int64_t slab = 0; slab < slab_info.num_slabs(); ++slab) {
        if (counter++ % num_ranks != rank) continue;
        slab_bytes.resize(static_cast<std::size_t>(slab_info.slab_bytes()));
        if (is_norm(tensors[i])) {
          fill_ones(tensors[i].dtype, slab_bytes);
        } else {
          fill_random(seed, tensors[i].path, slab * slab_info.slab_elements(),
                      deviation_of(tensors[i]), tensors[i].dtype, slab_bytes);
        }
        writer->write_slab(i, slab, slab_bytes);
      }
    }
  } catch (const std::exception& error) {
    writer->set_failed(error.what());
  }
  comm::watched::stage("closing the model file", closing_s);
  const comm::Waiting waiting("closing the model file");
  writer->close();
}

}  // namespace atl
