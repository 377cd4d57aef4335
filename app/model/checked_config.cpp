#include "app/model/checked_config.hpp"

#include <fmt/format.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "app/model/tensors.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

std::string text_of(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

ModelConfig checked_config(const io::ModelFileReader& reader) {
  ModelConfig config;
  try {
    config = ModelConfig::from_json(reader.config_json());
  } catch (const Error& error) {
    fail("cannot read {}: {}", reader.path(), error.what());
  }
  std::map<std::string, io::DatasetInfo> on_file;
  for (io::DatasetInfo& dataset : reader.datasets()) on_file[dataset.path] = std::move(dataset);
  for (const TensorInfo& tensor : tensors_of(config)) {
    const auto found = on_file.find(tensor.path);
    require(found != on_file.end(),
            "cannot read {}: dataset {} {} is missing; create the file again", reader.path(),
            tensor.path, text_of(tensor.shape));
    const io::DatasetInfo& dataset = found->second;
    require(dataset.shape == tensor.shape && dataset.dtype == tensor.dtype,
            "cannot read {}: dataset {} is {} {}, its configuration says {} {}; create the file "
            "again",
            reader.path(), tensor.path, text_of(dataset.shape), name_of(dataset.dtype),
            text_of(tensor.shape), name_of(tensor.dtype));
    on_file.erase(found);
  }
  if (!on_file.empty()) {
    fail("cannot read {}: its configuration describes no dataset {}; create the file again",
         reader.path(), on_file.begin()->first);
  }
  return config;
}

}  // namespace atl
