#include "app/run/placement_file.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_depth.hpp"

namespace atl {

using nlohmann::json;

namespace {

std::string text_of(const std::string& path) {
  std::error_code ignored;
  require(std::filesystem::is_regular_file(path, ignored), "{} is no file; check --placement",
          path);
  std::ifstream stream(path, std::ios::binary);
  require(stream.good(), "cannot read {}; check --placement", path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

std::vector<int> ranks_of(const json& list, const std::string& where) {
  require(list.is_array(), "{} is no list of ranks", where);
  std::vector<int> ranks;
  for (const json& rank : list) {
    require(rank.is_number_integer() && rank.get<double>() >= -1e9 && rank.get<double>() <= 1e9,
            "{} has {}, which is no rank", where, rank.dump());
    ranks.push_back(rank.get<int>());
  }
  return ranks;
}

/// The number of the layer that a key names.
int layer_named(const std::string& key, const ModelShape& shape, const std::string& path) {
  const bool digits = !key.empty() && key.size() < 7 && (key[0] != '0' || key.size() == 1) &&
                      key.find_first_not_of("0123456789") == std::string::npos;
  const int layer = digits ? std::stoi(key) : -1;
  require(layer >= 0 && layer < shape.num_layers && !shape.is_dense(layer),
          "{}: \"layers\" names \"{}\", which is no MoE layer of this model; was it made for "
          "another?",
          path, key);
  return layer;
}

}  // namespace

Placement read_placement(const std::string& path, const ModelShape& shape, const Layout& layout) {
  const std::string text = text_of(path);
  io::require_shallow_json(text, path);
  const json file = json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(file.is_object() && file.contains("format") && file["format"] == placement_format &&
              file.contains("layers") && file["layers"].is_object(),
          "{} is not a placement (JSON with \"format\": \"{}\" and \"layers\"); check --placement",
          path, placement_format);
  for (const auto& [key, ignored] : file.items()) {
    require(key == "format" || key == "layers" || key == "figures",
            "{}: \"{}\" means nothing in a placement", path, key);
  }
  const Placement even = even_placement(shape, layout);
  std::vector<std::vector<std::vector<int>>> layers(static_cast<std::size_t>(shape.num_layers));
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    if (!shape.is_dense(layer)) {
      layers[static_cast<std::size_t>(layer)] = even.of(layer).ranks_of_expert();
    }
  }
  for (const auto& [key, experts] : file["layers"].items()) {
    const int layer = layer_named(key, shape, path);
    const std::string where = fmt::format("{}: layer {}", path, layer);
    require(experts.is_array(), "{} is no list of experts", where);
    auto& of_layer = layers[static_cast<std::size_t>(layer)];
    of_layer.clear();
    for (const json& ranks : experts) {
      of_layer.push_back(ranks_of(ranks, fmt::format("{}, expert {}", where, of_layer.size())));
    }
  }
  try {
    return explicit_placement(shape, layout, layers);
  } catch (const Error& error) {
    fail("{}: {}; check --placement", path, error.what());
  }
}

Placement placement_of(const RunOptions& options, const ModelShape& shape, const Layout& layout) {
  Placement placement = options.placement.empty()
                            ? even_placement(shape, layout, options.slots)
                            : read_placement(options.placement, shape, layout);
  if (options.balance != Balance::none) placement.separate_layers();
  return placement;
}

}  // namespace atl
