#include "app/run/devices.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string_view>

#include "compute/error.hpp"

namespace atl {

namespace {

/// Of the free memory, so that what libraries take later still fits.
constexpr double usable_share = 0.95;

struct DeviceOfRank {
  std::int32_t node = 0;
  std::array<char, 60> id{};
  std::int64_t free_bytes = 0;
  bool same_device(const DeviceOfRank& other) const { return node == other.node && id == other.id; }
};

/// The value names no device: CUDA takes the list up to the first entry that it does not know.
bool names_none(std::string_view value) {
  const std::size_t begin = value.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return true;
  const std::string_view first = value.substr(begin, value.find(',', begin) - begin);
  const bool number = first[0] >= '0' && first[0] <= '9';
  return !number && !first.starts_with("GPU-") && !first.starts_with("MIG-");
}

/// Attention has other bits by warpgroups: they are taken where every rank can. True where they
/// are.
bool agree_on_wgmma(const comm::Communicator& world, compute::CudaDevice& device) {
  const auto reasons = world.allgather_texts(device.why_no_wgmma);
  for (const std::string& reason : reasons) {
    if (!reason.empty()) device.why_no_wgmma = reason;
  }
  return device.why_no_wgmma.empty();
}

/// Takes the rank's device and learns who shares it.
compute::CudaShare share_device(const comm::Communicator& world, const comm::Topology& topology,
                                int num_devices) {
  const auto rank = static_cast<std::size_t>(world.rank());
  compute::CudaShare share;
  world.agree([&] {
    share.device = compute::open_cuda_device(topology.local_rank_of[rank] % num_devices);
  });
  world.barrier();  // every rank's context is there now, and counts as taken memory
  DeviceOfRank mine;
  mine.node = topology.node_of[rank];
  std::copy_n(share.device.id.begin(), std::min(share.device.id.size(), mine.id.size() - 1),
              mine.id.begin());
  mine.free_bytes = compute::free_cuda_bytes();
  share.num_ranks = 0;
  share.device.free_bytes = mine.free_bytes;
  for (const DeviceOfRank& other : world.allgather(mine)) {
    if (!other.same_device(mine)) continue;
    ++share.num_ranks;
    share.device.free_bytes = std::min(share.device.free_bytes, other.free_bytes);
  }
  share.memory_bytes = static_cast<std::int64_t>(static_cast<double>(share.device.free_bytes) *
                                                 usable_share / share.num_ranks);
  return share;
}

}  // namespace

std::string why_gpus_are_hidden(const comm::launcher::Variables& variables) {
  const char* cuda = variables("CUDA_VISIBLE_DEVICES");
  if (cuda != nullptr) {
    return names_none(cuda) ? fmt::format("CUDA_VISIBLE_DEVICES={} hides all", cuda) : "";
  }
  // Of container runtimes; GPUs that were given otherwise are named by CUDA's own variable.
  for (const char* name : {"NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"}) {
    const char* value = variables(name);
    if (value == nullptr) continue;
    const std::string_view text(value);
    for (const char* none : {"", "void", "none", "-1", "NoDevFiles"}) {
      if (text == none) return fmt::format("{}={} hides all", name, value);
    }
  }
  return "";
}

void choose_device_early(std::optional<BackendKind> wanted) {
  const comm::launcher::Variables variables = comm::launcher::own_environment();
  if (wanted == BackendKind::cpu || !why_gpus_are_hidden(variables).empty()) return;
  compute::choose_cuda_device(comm::launcher::known_local_rank(variables));
}

BackendChoice choose_backend(const comm::Communicator& world, const comm::Topology& topology,
                             std::optional<BackendKind> wanted) {
  BackendChoice choice;
  if (wanted == BackendKind::cpu) return choice;
  const std::string hidden = why_gpus_are_hidden(comm::launcher::own_environment());
  compute::CudaDevices devices;
  if (hidden.empty()) {
    devices = compute::find_cuda_devices();
  } else {
    devices.why_none = fmt::format(
        "no CUDA device may be used ({}); ask the batch system for GPUs, or use --backend cpu",
        hidden);
  }
  const auto counts = world.allgather(devices.count);
  const auto without = std::find(counts.begin(), counts.end(), 0);
  const bool none = std::all_of(counts.begin(), counts.end(), [](int count) { return count == 0; });
  if (!wanted && none) return choice;
  world.agree([&] {
    require(devices.count > 0 || (!wanted && !none), "{}", devices.why_none);
    require(
        without == counts.end(),
        "rank {} sees no CUDA device, and other ranks do; give every rank one, or use --backend "
        "cpu",
        without - counts.begin());
  });
  choice.cuda = true;
  choice.share = share_device(world, topology, devices.count);
  const auto names = world.allgather_texts(choice.share.device.kind);
  const std::set<std::string> kinds(names.begin(), names.end());
  choice.devices = fmt::format("{}", fmt::join(kinds, ", "));
  if (agree_on_wgmma(world, choice.share.device)) choice.devices += " (attention by wgmma)";
  return choice;
}

std::unique_ptr<compute::Backend> make_backend(const BackendChoice& choice,
                                               const compute::BackendOptions& options) {
  return choice.cuda ? compute::make_cuda_backend(options, choice.share)
                     : compute::make_cpu_backend(options);
}

}  // namespace atl
