#pragma once
// Look-ups in a Hugging Face configuration that remember which keys were asked for.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "compute/model_shape.hpp"

namespace atl {

/// A null counts as absent, as it mostly does in `transformers`. Every function throws Error naming
/// the key, its value and what would work.
class HfConfig {
 public:
  explicit HfConfig(nlohmann::json json) : json_(std::move(json)) {}

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  /// Whether it is there as a null.
  bool is_null(const char* key) const { return json_.contains(key) && json_.at(key).is_null(); }
  /// Null where it is absent.
  const nlohmann::json& at(const char* key) const;

  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const;
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high,
                       std::int64_t otherwise) const;
  double number(const char* key, double otherwise) const;
  bool flag(const char* key, bool otherwise) const;
  /// [count]: "first" where the layer's entry in `key` is `first`, which must else be `second`.
  std::optional<std::vector<bool>> layers_of(const char* key, const char* first, const char* second,
                                             int count) const;
  /// Throws Error unless the key is absent, null, or one of `harmless`.
  void only(const char* key, std::initializer_list<nlohmann::json> harmless) const;

  /// Keys that nobody has asked for, but for those that say nothing about results.
  std::vector<std::string> unknown() const;

 private:
  nlohmann::json json_;
  mutable std::set<std::string> used_;
};

/// What a rope in a configuration comes to, by `rope_scaling`, else `rope_parameters`, of which one
/// kind of layer may have its own; with the keys beside them.
struct HfRope {
  Rope rope;
  double scale = 1;  ///< logits are multiplied by it (yarn's mscale_all_dim)
  QueryTemperature temperature;
};
struct HfRopeDefaults {
  int head_dim = 0;
  double theta = 10000;
  double partial = 1;            ///< of head_dim that turns
  const char* layers = nullptr;  ///< key of the kind of layer in rope_parameters
};
/// As `transformers` computes frequencies, rounded to float32. Throws Error for a kind of scaling
/// that is not supported.
HfRope hf_rope(const HfConfig& config, const HfRopeDefaults& defaults);

}  // namespace atl
