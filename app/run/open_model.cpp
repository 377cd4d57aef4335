#include "app/run/open_model.hpp"

#include "app/model/inspect.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

DType activation_type(const std::string& wanted, DType on_file) {
  if (wanted == "bfloat16") return DType::bfloat16;
  if (wanted == "float16") return DType::float16;
  if (wanted == "float32") return DType::float32;
  return on_file;
}

}  // namespace

OpenModel::OpenModel(const std::string& path, const std::string& wanted)
    : file(std::make_unique<io::ModelFileReader>(path)),
      config(checked_config(*file)),
      dtype(activation_type(wanted, config.dtype)) {}

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
