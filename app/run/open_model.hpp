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
  /// `dtype` is --dtype. Throws Error when the file cannot be read or is none.
  OpenModel(const std::string& path, std::optional<DType> dtype);

  /// Collective. Throws Error where a rank reads another file.
  void require_same(const comm::Communicator& world, const std::string& path) const;

  std::unique_ptr<io::ModelFileReader> file;
  ModelConfig config;
  DType dtype = DType::bfloat16;  ///< of the activations
};

}  // namespace atl
