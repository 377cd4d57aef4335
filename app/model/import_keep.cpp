// Importing weights as the codes that they are published in.

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "app/model/import_plan.hpp"
#include "app/model/kept_config.hpp"
#include "compute/weights.hpp"

namespace atl {
namespace {

using compute::Weight;
using LayerWeight = std::pair<int, Weight>;  // layer and weight

/// What all slabs of a weight's datasets are kept as, so far.
struct Common {
  Coding coding;
  bool any_coded = false;
  bool equal = true;
};

std::map<LayerWeight, Common> codings_of(const std::vector<Import>& imports) {
  std::map<LayerWeight, Common> all;
  for (const Import& import : imports) {
    const auto [at, is_new] = all.try_emplace({import.target.layer, import.target.weight});
    Common& common = at->second;
    bool first = is_new;
    for (const Source& source : import.slabs) {
      const bool coded = source.coded.code != Code::none;
      const Coding coding = coded ? coding_of(source.coded) : Coding{};
      if (first) common.coding = coding;
      first = false;
      common.any_coded = common.any_coded || coded;
      common.equal = common.equal && coding == common.coding;
    }
  }
  return all;
}

void set_kept(const std::map<LayerWeight, Common>& all, ModelShape& shape) {
  std::vector<std::vector<CodedWeight>> layers(static_cast<std::size_t>(shape.num_layers));
  for (const auto& [place, common] : all) {
    const auto& [layer, weight] = place;
    if (layer >= 0 && common.equal && common.coding.used() && compute::may_be_coded(weight)) {
      layers[static_cast<std::size_t>(layer)].push_back({weight, common.coding});
    }
  }
  set_codings(layers, shape);
}

/// The names of weights in few bits that do not stay so.
std::set<std::string> unpacked_names(const std::map<LayerWeight, Common>& all,
                                     const ModelShape& shape) {
  std::set<std::string> names;
  for (const auto& [place, common] : all) {
    const auto& [layer, weight] = place;
    if (common.any_coded && !shape.coding(weight, layer).used()) {
      names.insert(compute::name_of(weight));
    }
  }
  return names;
}

}  // namespace

void keep_codes(std::vector<Import>& imports, ModelConfig& config, const io::Warn& warn) {
  const std::map<LayerWeight, Common> all = codings_of(imports);
  set_kept(all, config.shape);
  const std::set<std::string> names = unpacked_names(all, config.shape);
  const auto& kinds = config.shape.codings;
  if (std::all_of(kinds.begin(), kinds.end(), [](const auto& kind) { return kind.empty(); })) {
    config.shape.codings.clear();
    config.shape.coding_of.clear();
    return warn("nothing to keep: no matrix of the layers is stored in few bits");
  }
  if (!names.empty()) {
    warn(
        fmt::format("not kept in few bits, but unpacked: {} (the rest of each weight is stored "
                    "otherwise, or it is used by parts)",
                    fmt::join(names, ", ")));
  }
  std::map<std::string, Import*> by_path;
  for (Import& import : imports) by_path[import.target.path] = &import;
  std::vector<Import> kept;
  for (TensorInfo& target : tensors_of(config)) {
    if (target.scales) {
      kept.push_back({std::move(target), kept.back().slabs});
    } else {
      std::vector<Source> slabs = std::move(by_path.at(target.path)->slabs);
      kept.push_back({std::move(target), std::move(slabs)});
    }
  }
  imports = std::move(kept);
}

std::span<const std::byte> read_kept_slab(const io::Safetensors& stored, const TensorInfo& target,
                                          const Source& source, KeptBuffers& buffers) {
  const CodedMatrix& matrix = source.coded;
  Picking picking = source.picking;
  if (target.scales) {
    read_scales_of_rows(stored, matrix, buffers.read);
    picking.cols = target.coding.groups(matrix.cols) * target.coding.scale_bytes();
  } else {
    read_codes(stored, matrix, buffers.read);
    picking.cols = target.coding.row_bytes(matrix.cols);
  }
  return picking.apply(buffers.read, DType::uint8, buffers.picked);
}

bool may_be_non_finite(const io::Safetensors& stored, const Source& source,
                       std::span<const std::byte> codes, DType dtype, KeptBuffers& buffers) {
  const Code code = source.coded.code;
  if (compute::find_nan_codes(codes, code)) return true;
  read_scales_of_rows(stored, source.coded, buffers.scales);
  return compute::find_non_finite_scales(buffers.scales, code, dtype, dtype).has_value();
}

}  // namespace atl
