#include "app/model/import_places.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "compute/error.hpp"

namespace atl {
namespace {

using compute::Weight;

/// "model." before names may be absent, where a model was saved without its head, or longer, where
/// it is the text part of another.
void add_prefixes(std::vector<Place>& places) {
  const std::size_t num_places = places.size();
  for (std::size_t i = 0; i < num_places; ++i) {
    const std::string name = places[i].name;
    if (name.starts_with("model.")) {
      places.push_back(places[i]);
      places.back().name.erase(0, 6);
    }
  }
}
void add_text_prefixes(std::vector<Place>& places) {
  const std::size_t num_places = places.size();
  for (std::size_t i = 0; i < num_places; ++i) {
    const std::string name = places[i].name;
    places.push_back(places[i]);
    places.back().name = "language_model." + name;
    if (!name.starts_with("model.")) continue;
    places.push_back(places[i]);
    places.back().name = "model.language_model." + name.substr(6);
  }
}

/// All places where a slab may be, the usual ones first. Experts have a tensor each, or one for all
/// of a layer, as `transformers` 5 has them in memory: gate_up_proj [experts, 2 width, hidden] with
/// the gate's rows first, and down_proj [experts, hidden, width]; the block is then `mlp` in every
/// architecture. A model saved without its head has no `model.` before its names.
std::vector<Place> places_of(const TensorInfo& target, std::int64_t slab,
                             const Architecture& architecture) {
  std::vector<Place> places;
  if (!target.per_expert && target.weight != Weight::router) {
    std::string name = target.path.substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    places.push_back({name, target.shape});
  } else {
    for (const char* block : {architecture.moe_block, "mlp"}) {
      const std::string prefix = fmt::format("model.layers.{}.{}.", target.layer, block);
      if (!target.per_expert) {
        places.push_back({prefix + "gate.weight", target.shape});
        continue;
      }
      const std::vector<std::int64_t>& s = target.shape;  // [experts, out, in]
      const bool down = target.weight == Weight::down;
      const bool gate = target.weight == Weight::gate;
      const char* matrix = down ? architecture.down : gate ? architecture.gate : architecture.up;
      places.push_back({fmt::format("{}experts.{}.{}.weight", prefix, slab, matrix), {s[1], s[2]}});
      if (down) {
        places.push_back({prefix + "experts.down_proj", s, slab, s[0]});
      } else {
        places.push_back({prefix + "experts.gate_up_proj",
                          {s[0], 2 * s[1], s[2]},
                          2 * slab + (gate ? 0 : 1),
                          2 * s[0]});
      }
    }
  }
  add_prefixes(places);
  return places;
}

/// The places of one family.
class FamilyPlaces {
 public:
  FamilyPlaces(const Family& family, const FamilyModel& model)
      : names_(family.names), model_(model), shape_(model.config.shape) {}

  std::vector<Place> of(const TensorInfo& target, std::int64_t slab) const {
    std::vector<Place> places;
    const std::string layer = fmt::format("model.layers.{}.", target.layer);
    const auto named = [&](const std::vector<const char*>& names) {
      for (const char* name : names) places.push_back({layer + name, target.shape});
    };
    switch (target.weight) {
      case Weight::router:
        named(names_.router);
        break;
      case Weight::router_bias:
        places.push_back({layer + with_bias(names_.router.front()), target.shape});
        break;
      case Weight::selection_bias:
        named(names_.selection_bias);
        break;
      case Weight::sinks:
        named(names_.sinks);
        break;
      case Weight::q_norm:
        places.push_back({layer + names_.q_norm + ".weight", target.shape});
        break;
      case Weight::k_norm:
        places.push_back({layer + names_.k_norm + ".weight", target.shape});
        break;
      case Weight::shared_gate:
      case Weight::shared_up:
      case Weight::shared_down:
        add_shared(places, target, layer);
        break;
      case Weight::gate:
      case Weight::up:
      case Weight::down:
      case Weight::gate_bias:
      case Weight::up_bias:
      case Weight::down_bias:
        add_mlp(places, target, slab, layer);
        break;
      case Weight::k_up:
      case Weight::v_up:
        places.push_back(of_latents(target, layer));
        break;
      default:
        places.push_back(of_rest(target));
        break;
    }
    add_text_prefixes(places);
    add_prefixes(places);
    return places;
  }

 private:
  static std::string with_bias(std::string name) {
    name.replace(name.rfind("weight"), 6, "bias");
    return name;
  }

  void add_shared(std::vector<Place>& places, const TensorInfo& target,
                  const std::string& layer) const {
    const char* matrix = target.weight == Weight::shared_gate ? "gate_proj"
                         : target.weight == Weight::shared_up ? "up_proj"
                                                              : "down_proj";
    if (names_.shared_gate_up == nullptr) {
      for (const char* block : names_.shared) {
        places.push_back({fmt::format("{}{}.{}.weight", layer, block, matrix), target.shape});
      }
    } else if (target.weight == Weight::shared_down) {
      places.push_back({layer + names_.shared_down, target.shape});
    } else {
      places.push_back({layer + names_.shared_gate_up,
                        {2 * target.shape[0], target.shape[1]},
                        target.weight == Weight::shared_gate ? 0 : 1,
                        2});
    }
  }

  /// A dense MLP's, or an expert's: a tensor each, or one for all experts of a layer.
  void add_mlp(std::vector<Place>& places, const TensorInfo& target, std::int64_t slab,
               const std::string& layer) const {
    const Weight id = target.weight;
    const bool bias = id == Weight::gate_bias || id == Weight::up_bias || id == Weight::down_bias;
    const bool down = id == Weight::down || id == Weight::down_bias;
    const bool gate = id == Weight::gate || id == Weight::gate_bias;
    if (!target.per_expert) return places.push_back(of_rest(target));
    const std::int64_t count = target.shape[0];
    const std::int64_t out = target.shape[1];
    const std::int64_t in = target.shape[2];
    if (names_.experts_by_columns) {
      const std::string name =
          fmt::format("{}{}{}", layer, down ? names_.fused_down[0] : names_.fused_gate_up[0],
                      bias ? "_bias" : "");
      return places.push_back(by_columns(name, count, out, in, down, gate, bias, slab));
    }
    const char* matrix = down ? names_.down : gate ? names_.gate : names_.up;
    for (const char* block : names_.experts) {
      places.push_back({fmt::format("{}{}.{}.{}.weight", layer, block, slab, matrix), {out, in}});
    }
    for (const char* name : down ? names_.fused_down : names_.fused_gate_up) {
      if (down) {
        places.push_back({layer + name, target.shape, slab, count});
      } else {
        places.push_back(
            {layer + name, {count, 2 * out, in}, 2 * slab + (gate ? 0 : 1), 2 * count});
      }
    }
  }

  /// Of [experts, in, out], or of [experts, in, 2 out] with gate and up in turns; or their biases.
  static Place by_columns(const std::string& name, std::int64_t count, std::int64_t out,
                          std::int64_t in, bool down, bool gate, bool bias, std::int64_t slab) {
    const std::int64_t stored = down ? out : 2 * out;
    Place place{name, {count, in, stored}, slab, count, {}};
    if (bias) place.shape = {count, stored};
    place.picking.cols = bias ? 1 : stored;
    place.picking.turned = !bias;
    if (bias && down) return place;
    for (std::int64_t i = 0; i < out; ++i) {
      place.picking.rows.push_back(down ? i : 2 * i + (gate ? 0 : 1));
    }
    return place;
  }

  /// kv_b_proj has each head's rows for its key and then for its value.
  Place of_latents(const TensorInfo& target, const std::string& layer) const {
    const std::int64_t key = shape_.head_dim - shape_.latent.rope;
    const std::int64_t value = shape_.values_dim();
    Place place{layer + "self_attn.kv_b_proj.weight",
                {shape_.num_heads * (key + value), shape_.latent.keys}};
    place.picking.cols = shape_.latent.keys;
    const bool keys = target.weight == Weight::k_up;
    for (std::int64_t head = 0; head < shape_.num_heads; ++head) {
      for (std::int64_t i = 0; i < (keys ? key : value); ++i) {
        place.picking.rows.push_back(head * (key + value) + (keys ? 0 : key) + i);
      }
    }
    return place;
  }

  /// What is called as in the model file, or nearly.
  Place of_rest(const TensorInfo& target) const {
    std::string name = target.path.substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    const auto rename = [&](std::string_view from, std::string_view to) {
      const std::size_t at = name.find(from);
      if (at != std::string::npos) name.replace(at, from.size(), to);
    };
    rename("q_a_norm", "q_a_layernorm");
    rename("kv_a_norm", "kv_a_layernorm");
    rename("kv_a_proj", "kv_a_proj_with_mqa");
    Place place{name, target.shape};
    place.picking.cols = target.shape.size() > 1 ? target.shape.back() : 1;
    if (target.weight == Weight::final_norm) place.picking.factor = model_.final_norm_scale;
    if (model_.rope_in_pairs) place.picking.rows = rows_of_pairs(name, target.shape[0]);
    return place;
  }

  /// Rows of queries and keys whose dimensions 2i and 2i + 1 turn together, so that i and
  /// i + dims / 2 do; none where nothing turns.
  std::vector<std::int64_t> rows_of_pairs(const std::string& name, std::int64_t count) const {
    std::int64_t head = 0;    // rows of one
    std::int64_t before = 0;  // of these, those that do not turn, which come first
    const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    const std::int64_t dims = shape_.rope(0).dims;
    if (shape_.latent.used()) {
      if (has(".q_b_proj.") || has(".q_proj.")) head = shape_.head_dim;
      if (has(".kv_a_proj_with_mqa.")) head = shape_.latent.width();
      before = head - dims;
    } else if (has(".q_proj.") || has(".k_proj.")) {
      head = shape_.head_dim;
    }
    std::vector<std::int64_t> rows;
    if (head == 0) return rows;
    for (std::int64_t first = 0; first < count; first += head) {
      for (std::int64_t i = 0; i < head; ++i) {
        const std::int64_t turned = i - before;
        const bool turns = turned >= 0 && turned < dims;
        const std::int64_t from = turned % (dims / 2) * 2 + turned / (dims / 2);
        rows.push_back(first + (turns ? before + from : i));
      }
    }
    return rows;
  }

  const FamilyNames& names_;
  const FamilyModel& model_;
  const ModelShape& shape_;
};

}  // namespace

std::span<const std::byte> Picking::apply(std::span<const std::byte> bytes, DType dtype,
                                          std::vector<std::byte>& buffer) const {
  if (rows.empty() && factor == 1) return bytes;
  const std::size_t element = size_of(dtype);
  const auto width = static_cast<std::size_t>(std::max<std::int64_t>(cols, 1));
  if (rows.empty()) {
    buffer.assign(bytes.begin(), bytes.end());
  } else if (turned) {
    const std::size_t in = bytes.size() / element / width;
    buffer.resize(rows.size() * in * element);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const std::byte* from = bytes.data() + static_cast<std::size_t>(rows[r]) * element;
      std::byte* to = buffer.data() + r * in * element;
      for (std::size_t i = 0; i < in; ++i) {
        std::memcpy(to + i * element, from + i * width * element, element);
      }
    }
  } else {
    buffer.resize(rows.size() * width * element);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      std::memcpy(buffer.data() + r * width * element,
                  bytes.data() + static_cast<std::size_t>(rows[r]) * width * element,
                  width * element);
    }
  }
  if (factor != 1) {
    require(dtype == DType::float32, "internal: only float32 is multiplied at import");
    for (std::size_t at = 0; at < buffer.size(); at += element) {
      float value = 0;
      std::memcpy(&value, buffer.data() + at, sizeof value);
      value *= factor;
      std::memcpy(buffer.data() + at, &value, sizeof value);
    }
  }
  return buffer;
}

FolderForm form_of(const Architecture& architecture) {
  return {architecture.name,
          [&architecture](const TensorInfo& target, std::int64_t slab) {
            return places_of(target, slab, architecture);
          },
          {}};
}

FolderForm form_of(const Family& family, const FamilyModel& model) {
  return {family.name,
          [places = FamilyPlaces(family, model)](const TensorInfo& target, std::int64_t slab) {
            return places.of(target, slab);
          },
          family.names.left_out == nullptr ? "" : family.names.left_out};
}

}  // namespace atl
