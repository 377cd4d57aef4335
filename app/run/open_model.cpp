#include "app/run/open_model.hpp"

#include <fmt/format.h>

#include "app/model/checked_config.hpp"

namespace atl {

OpenModel::OpenModel(const comm::Communicator& world, const std::string& path,
                     std::optional<DType> wanted) {
  const bool root = world.rank() == 0;
  std::string description;
  world.agree([&] {
    if (!root) return;
    file = std::make_unique<io::ModelFileReader>(path);
    config = checked_config(*file);
    if (world.size() > 1) description = file->description();
  });
  description = world.broadcast(description, 0);
  world.agree([&] {
    if (!root) {
      file = std::make_unique<io::ModelFileReader>(path, description);
      config = checked_config(*file);
    }
    dtype = wanted.value_or(config.dtype);
  });
}

std::string OpenModel::weights() const {
  return fmt::format("{:016x}", file->identity());
}

}  // namespace atl
