#pragma once
// Which weights a model keeps as codes, as configurations of either version say it: a list of
// kinds, and for each layer which it is.

#include <nlohmann/json.hpp>
#include <vector>

#include "compute/types.hpp"

namespace atl {

inline constexpr const char* kept_kinds_key = "kept_kinds";
inline constexpr const char* kept_of_layer_key = "kept_of_layer";

/// Reads both into `shape`, whose layers are known. Throws Error naming what is wrong.
void read_kept(const nlohmann::json& kinds, const nlohmann::json& of_layer, ModelShape& shape);

/// What each layer keeps becomes kinds of layers, in order of their first layer.
void set_codings(const std::vector<std::vector<CodedWeight>>& layers, ModelShape& shape);

/// Adds both keys to `json`, where anything is kept.
void add_kept(const ModelShape& shape, nlohmann::json& json);

}  // namespace atl
