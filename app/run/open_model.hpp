#pragma once
// The model of a run, as its file says.

#include <memory>
#include <optional>
#include <string>

#include "app/model/model_config.hpp"
#include "comm/communicator.hpp"
#include "io/model_file.hpp"

namespace atl {

struct OpenModel {
  OpenModel() = default;
  /// Collective: rank 0 looks through the file and tells the others, which only open it. `wanted`
  /// is --dtype. Throws AgreedFailure when the file cannot be read or is none, or where a rank sees
  /// another one.
  OpenModel(const comm::Communicator& world, const std::string& path, std::optional<DType> wanted);

  /// The name of its weights in results: the model's identity, 16 hex digits.
  std::string weights() const;

  std::unique_ptr<io::ModelFileReader> file;
  ModelConfig config;
  DType dtype = DType::bfloat16;  ///< of the activations
};

}  // namespace atl
