#include "app/model/kept_config.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "compute/error.hpp"
#include "compute/weights.hpp"
#include "io/json_shown.hpp"

namespace atl {
namespace {

using Json = nlohmann::json;
using io::shown;

constexpr int max_group = 1 << 24;

compute::Weight weight_called(const std::string& name) {
  for (int id = 0; id <= static_cast<int>(compute::Weight::v_up); ++id) {
    const auto weight = static_cast<compute::Weight>(id);
    if (compute::may_be_coded(weight) && name == compute::name_of(weight)) return weight;
  }
  fail("configuration key \"{}\" has a weight {}, of which none is kept as codes", kept_kinds_key,
       shown(name));
}

Coding read_coding(const Json& json) {
  require(json.is_object() && json.size() == 2 && json.contains("code") && json.contains("group"),
          "configuration key \"{}\" has a weight that is {}, must be an object of code and group",
          kept_kinds_key, shown(json));
  Coding coding;
  for (const Code code : {Code::fp8, Code::mxfp4, Code::int4}) {
    if (json["code"] == name_of(code)) coding.code = code;
  }
  require(coding.used(),
          "configuration key \"code\" of a kept weight is {}, must be fp8, mxfp4 or int4",
          shown(json["code"]));
  const Json& group = json["group"];
  const bool fits =
      group.is_number_unsigned() && group > 0 && group <= max_group && group.get<int>() % 2 == 0;
  require(fits,
          "configuration key \"group\" of a kept weight is {}, must be an even number up to {}",
          shown(group), max_group);
  coding.group = group.get<int>();
  return coding;
}

}  // namespace

void read_kept(const Json& kinds, const Json& of_layer, ModelShape& shape) {
  require(kinds.is_array() && !kinds.empty() && kinds.size() <= 255,
          "configuration key \"{}\" is {}, must be a list of 1 to 255 objects", kept_kinds_key,
          shown(kinds));
  for (const Json& kind : kinds) {
    require(kind.is_object(), "configuration key \"{}\" has an entry {}, must be an object",
            kept_kinds_key, shown(kind));
    std::vector<CodedWeight> weights;
    for (const auto& [name, coding] : kind.items()) {
      weights.push_back({weight_called(name), read_coding(coding)});
    }
    shape.codings.push_back(std::move(weights));
  }
  const auto layers = static_cast<std::size_t>(shape.num_layers);
  require(of_layer.is_array() && of_layer.size() == layers,
          "configuration key \"{}\" is {}, must have an entry for each of {} layers",
          kept_of_layer_key, shown(of_layer), layers);
  for (const Json& kind : of_layer) {
    require(kind.is_number_unsigned() && kind < kinds.size(),
            "configuration key \"{}\" has an entry {}, must be one of {} kinds", kept_of_layer_key,
            shown(kind), kinds.size());
    shape.coding_of.push_back(kind.get<std::uint8_t>());
  }
}

void set_codings(const std::vector<std::vector<CodedWeight>>& layers, ModelShape& shape) {
  for (const auto& layer : layers) {
    auto kind = std::find(shape.codings.begin(), shape.codings.end(), layer);
    if (kind == shape.codings.end()) kind = shape.codings.insert(kind, layer);
    shape.coding_of.push_back(static_cast<std::uint8_t>(kind - shape.codings.begin()));
  }
}

void add_kept(const ModelShape& shape, Json& json) {
  if (shape.codings.empty()) return;
  Json kinds = Json::array();
  for (const auto& weights : shape.codings) {
    Json kind = Json::object();
    for (const auto& [weight, coding] : weights) {
      kind[compute::name_of(weight)] = {{"code", name_of(coding.code)}, {"group", coding.group}};
    }
    kinds.push_back(std::move(kind));
  }
  json[kept_kinds_key] = std::move(kinds);
  json[kept_of_layer_key] = shape.coding_of;
}

}  // namespace atl
