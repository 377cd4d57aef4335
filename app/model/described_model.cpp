#include "app/model/described_model.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/model/import.hpp"
#include "compute/error.hpp"
#include "io/json_text.hpp"

namespace atl {

ModelConfig described_model(const std::string& path) {
  const std::string what = fmt::format("cannot make a model of {}", path);
  const nlohmann::json json = io::read_json_object(path, what);
  const bool of_hf = json.contains("architectures") || json.contains("model_type");
  try {
    if (!of_hf) return ModelConfig::from_json(json.dump());
    const DType otherwise = DType::bfloat16;  // where no key says; there are no tensors to ask
    return ModelConfig::from_json(config_from_hf(json.dump(), std::string(name_of(otherwise))));
  } catch (const Error& error) {
    fail("{}: {}", what, error.what());
  }
}

}  // namespace atl
