#include "app/model/described_model.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "app/model/families.hpp"
#include "app/model/import.hpp"
#include "app/model/kept_config.hpp"
#include "app/model/quantised.hpp"
#include "compute/error.hpp"
#include "compute/weights.hpp"
#include "io/json_text.hpp"

namespace atl {

namespace {

using compute::Weight;

/// Of what a folder publishes in few bits a configuration says the method: FP8 is of all matrices
/// of the layers, the others of experts.
bool is_published_in_few_bits(const compute::WeightInfo& info, const Quantisation& quantisation) {
  if (info.layer < 0 || !compute::may_be_coded(info.id)) return false;
  return quantisation.method == "fp8" || info.per_expert;
}

void keep_published(const Quantisation& quantisation, ModelShape& shape) {
  const Code code = quantisation.method == "fp8"     ? Code::fp8
                    : quantisation.method == "mxfp4" ? Code::mxfp4
                                                     : Code::int4;
  std::vector<std::vector<CodedWeight>> layers(static_cast<std::size_t>(shape.num_layers));
  for (const compute::WeightInfo& info : compute::weights_of(shape)) {
    if (!is_published_in_few_bits(info, quantisation)) continue;
    CodedMatrix matrix;
    matrix.code = code;
    matrix.cols = info.cols;
    matrix.block_cols = quantisation.block_cols;
    if (!coding_of(matrix).used()) continue;
    layers[static_cast<std::size_t>(info.layer)].push_back({info.id, coding_of(matrix)});
  }
  set_codings(layers, shape);
}

}  // namespace

ModelConfig described_model(const std::string& path, KeptWeights weights) {
  const std::string what = fmt::format("cannot make a model of {}", path);
  const nlohmann::json json = io::read_json_object(path, what);
  const bool of_hf = json.contains("architectures") || json.contains("model_type");
  try {
    if (!of_hf) return ModelConfig::from_json(json.dump());
    const DType otherwise = DType::bfloat16;  // where no key says; there are no tensors to ask
    ModelConfig config =
        ModelConfig::from_json(config_from_hf(json.dump(), std::string(name_of(otherwise))));
    nlohmann::json hf = json;
    family_of(hf);  // a text model's configuration may be inside
    const Quantisation quantisation = take_quantisation(hf);
    if (weights == KeptWeights::coded && quantisation.block_cols > 0) {
      keep_published(quantisation, config.shape);
    }
    return config;
  } catch (const Error& error) {
    fail("{}: {}", what, error.what());
  }
}

}  // namespace atl
