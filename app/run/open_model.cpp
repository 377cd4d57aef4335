#include "app/run/open_model.hpp"

#include "app/model/checked_config.hpp"
#include "compute/error.hpp"

namespace atl {

OpenModel::OpenModel(const std::string& path, std::optional<DType> wanted)
    : file(std::make_unique<io::ModelFileReader>(path)),
      config(checked_config(*file)),
      dtype(wanted.value_or(config.dtype)) {}

void OpenModel::require_same(const comm::Communicator& world, const std::string& path) const {
  const std::uint64_t identity = file->identity();
  const auto identities = world.allgather(identity);
  world.agree([&] {
    require(identity == identities[0],
            "{} on rank {} is not the file that rank 0 reads (its contents differ); give all "
            "ranks the same model file",
            path, world.rank());
  });
}

}  // namespace atl
