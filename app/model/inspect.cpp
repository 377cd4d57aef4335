#include "app/model/inspect.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "app/model/checked_config.hpp"
#include "app/model/inspect_routing.hpp"
#include "app/model/tensors.hpp"
#include "compute/convert.hpp"
#include "compute/error.hpp"
#include "io/activation_file.hpp"
#include "io/checkpoint.hpp"
#include "io/folder_tokenizer.hpp"
#include "io/model_file.hpp"
#include "io/routing_file.hpp"

namespace atl {
namespace {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string size_text(double bytes) {
  const char* unit = "B";
  for (const char* larger : {"kB", "MB", "GB", "TB"}) {
    if (bytes < 1000) break;
    bytes /= 1000;
    unit = larger;
  }
  return unit[1] == '\0' ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, unit);
}

std::int64_t bytes_of(const io::DatasetInfo& dataset) {
  return dataset.num_slabs() * dataset.slab_bytes();
}

std::string table_of(const std::vector<io::DatasetInfo>& datasets) {
  std::size_t path_width = 6;
  std::size_t shape_width = 5;
  for (const io::DatasetInfo& d : datasets) {
    path_width = std::max(path_width, d.path.size());
    shape_width = std::max(shape_width, shape_text(d.shape).size());
  }
  std::string text = fmt::format("{:<{}}  {:<{}}  {:<8}  {:>10}\n", "tensor", path_width, "shape",
                                 shape_width, "dtype", "size");
  for (const io::DatasetInfo& d : datasets) {
    fmt::format_to(std::back_inserter(text), "{:<{}}  {:<{}}  {:<8}  {:>10}\n", d.path, path_width,
                   shape_text(d.shape), shape_width, name_of(d.dtype),
                   size_text(static_cast<double>(bytes_of(d))));
  }
  return text;
}

std::string totals_of(const std::vector<io::DatasetInfo>& datasets, const ModelConfig& config) {
  ModelConfig unpacked = config;  // has a dataset of elements for each weight
  unpacked.shape.codings.clear();
  std::int64_t parameters = 0;
  std::int64_t expert_parameters = 0;
  for (const TensorInfo& t : tensors_of(unpacked)) {
    std::int64_t elements = 1;
    for (const std::int64_t extent : t.shape) elements *= extent;
    parameters += elements;
    expert_parameters += t.per_expert ? elements : 0;
  }
  std::int64_t bytes = 0;
  for (const io::DatasetInfo& d : datasets) bytes += bytes_of(d);
  const std::int64_t active = parameters - expert_parameters +
                              expert_parameters / config.shape.num_experts * config.shape.top_k;
  return fmt::format(
      "{} tensors, {} ({} bytes)\n{} parameters, of which {} in experts; {} active per token\n",
      datasets.size(), size_text(static_cast<double>(bytes)), bytes, parameters, expert_parameters,
      active);
}

/// What reading every slab brings to light.
struct Verification {
  std::vector<std::string> damage;      ///< messages of the slabs that fail
  std::vector<std::string> non_finite;  ///< tensors with values that are not finite
};

std::optional<compute::NonFinite> non_finite(std::span<const std::byte> bytes,
                                             const TensorInfo& tensor, DType dtype) {
  if (!tensor.coding.used()) return compute::find_non_finite(bytes, tensor.dtype);
  if (!tensor.scales) return compute::find_nan_codes(bytes, tensor.coding.code);
  return compute::find_non_finite_scales(bytes, tensor.coding.code, dtype, dtype);
}

Verification verify(io::ModelFileReader& reader, const ModelConfig& config) {
  std::map<std::string, TensorInfo> tensors;
  for (TensorInfo& t : tensors_of(config)) tensors.emplace(t.path, std::move(t));
  Verification result;
  std::vector<std::byte> bytes;
  for (const io::DatasetInfo& dataset : reader.datasets()) {
    bytes.resize(static_cast<std::size_t>(dataset.slab_bytes()));
    compute::NonFinite found;
    for (std::int64_t slab = 0; slab < dataset.num_slabs(); ++slab) {
      try {
        reader.read_slab(dataset, slab, bytes);
        const auto bad = non_finite(bytes, tensors.at(dataset.path), config.dtype);
        found.add(bad.value_or(compute::NonFinite{}), slab * dataset.slab_elements());
      } catch (const Error& error) {
        result.damage.emplace_back(error.what());
      }
    }
    if (found.count == 0) continue;
    result.non_finite.push_back(
        fmt::format("  {}: {}\n", dataset.path, compute::text_of(found, dataset.shape)));
  }
  return result;
}

std::string verification_of(io::ModelFileReader& reader, const ModelConfig& config) {
  const Verification found = verify(reader, config);
  require(found.damage.empty(), "{} of the slabs of {} are damaged:\n{}", found.damage.size(),
          reader.path(), fmt::join(found.damage, "\n"));
  std::string text = fmt::format("checksums: all good ({} bytes read)\n", reader.bytes_read());
  if (!found.non_finite.empty()) {
    text +=
        fmt::format("weights that are not finite in {} tensors; requests that meet them fail:\n{}",
                    found.non_finite.size(), fmt::join(found.non_finite, ""));
  }
  return text;
}

/// A checkpoint: its state, how far its sequences had come, and how much of it there is.
std::string checkpoint_text(const std::string& path, bool verify) {
  io::CheckpointReader reader(path);
  const io::CheckpointContents& c = reader.contents();
  std::string text = fmt::format("checkpoint {}\nstate\n{}\n\n", path,
                                 nlohmann::ordered_json::parse(c.state, nullptr, false).dump(2));
  fmt::format_to(std::back_inserter(text), "{:>8}  {:>10}  {:>10}  {}\n", "request", "generated",
                 "positions", "keys and values");
  std::int64_t positions = 0;
  std::int64_t requests = 0;
  for (const io::CheckpointSequence& s : c.sequences) {
    const std::string name = s.is_beginning() ? "shared" : std::to_string(s.request);
    fmt::format_to(std::back_inserter(text), "{:>8}  {:>10}  {:>10}  {}\n", name, s.generated,
                   s.positions(), s.complete != 0 ? "whole" : "finished meanwhile");
    positions += s.cached;
    if (!s.is_beginning()) ++requests;
  }
  text += fmt::format(
      "\n{} requests under way, {} waiting; written by {} ranks\n{} positions of {} layers, {} "
      "heads "
      "of {} {} elements: {} of {}\n",
      requests, c.pending.size(), c.sequences_of.size(), positions, c.num_layers, c.num_kv_heads,
      c.head_dim, name_of(c.dtype),
      size_text(2.0 * static_cast<double>(positions * c.num_layers * c.row_bytes())),
      size_text(static_cast<double>(reader.bytes())));
  std::int64_t tokens = 0;
  for (const std::int64_t load : c.expert_loads) tokens += load;
  text += fmt::format("{} rows sent to {} experts so far\n", tokens, c.num_experts);
  if (verify) {
    reader.verify(0, 1);
    text += "checksums: all good\n";
  }
  return text;
}

std::string activations_text(const std::string& path) {
  io::ActivationReader reader(path);
  const io::ActivationLayout& layout = reader.layout();
  std::int64_t rows = 0;
  for (std::size_t r = 0; r < layout.requests.size(); ++r) rows += reader.num_rows(r);
  return fmt::format(
      "activations file {}\nof model {}\n{} layers: {}\nx [{} tokens, {}] float32 each, of {} "
      "requests\n",
      path, layout.model, layout.layers.size(), fmt::join(layout.layers, ", "), rows, layout.hidden,
      layout.requests.size());
}

}  // namespace

std::string inspect_text(const std::string& path, bool verify) {
  if (io::is_npy(path)) return routing_text(path, verify);
  const std::string format = io::file_format(path);
  if (format == io::checkpoint_format) return checkpoint_text(path, verify);
  if (format == io::activations_format) return activations_text(path);
  if (format == io::routing_format) return routing_text(path, verify);
  io::ModelFileReader reader(path);
  const ModelConfig config = checked_config(reader);
  const std::vector<io::DatasetInfo> datasets = reader.datasets();
  std::string text =
      fmt::format("model file {}\nidentity {:016x}\nconfiguration\n{}\n\n", reader.path(),
                  reader.identity(), nlohmann::json::parse(config.to_json()).dump(2));
  text += table_of(datasets) + "\n" + totals_of(datasets, config);
  if (const auto tokenizer = reader.attachments(); !tokenizer.empty()) {
    text += fmt::format("tokenizer: {}\n", io::description_of(io::from_attachments(tokenizer)));
  }
  if (verify) text += verification_of(reader, config);
  return text;
}

}  // namespace atl
