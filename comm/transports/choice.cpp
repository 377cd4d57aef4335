#include "comm/transports/choice.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "comm/environment.hpp"
#include "comm/mpi_library.hpp"

namespace atl::comm {

namespace {

/// Staging must be so much faster: two measurements of the same differ by a part of that.
constexpr double clearly = 1.1;

/// True on all ranks if true on all.
bool everywhere(const Communicator& parent, bool here) {
  std::int64_t all = here ? 1 : 0;
  parent.allreduce(std::span(&all, 1), Communicator::Reduce::min);
  return all == 1;
}

/// What was being tried when an earlier start ended, with this MPI library. Each line names a
/// transport and the library; rank 0 reads and writes.
class Note {
 public:
  Note(const Communicator& parent, std::string path)
      : parent_(parent),
        path_(std::move(path)),
        library_(Environment::library()),
        wanted_(parent.broadcast_value(!path_.empty(), 0)) {
    std::string text;
    if (writes()) {
      std::ifstream file(path_);
      for (std::string line; std::getline(file, line);) lines_.push_back(line);
      for (const std::string& line : lines_) text += line + "\n";
    }
    text = parent.broadcast(text, 0);
    for (const TransportInfo& transport : transports) {
      if (text.find(line_of(transport.kind) + "\n") != std::string::npos) {
        crashed_.push_back(transport.kind);
      }
    }
  }

  bool crashed(TransportKind kind) const {
    return std::find(crashed_.begin(), crashed_.end(), kind) != crashed_.end();
  }
  /// Collective: the file says so before any rank goes on.
  void trying(TransportKind kind) {
    if (!wanted_) return;
    if (writes() && !crashed(kind)) {
      lines_.push_back(line_of(kind));
      save();
    }
    parent_.barrier();
  }
  void ended(TransportKind kind) {
    if (!writes()) return;
    std::erase(lines_, line_of(kind));
    save();
  }
  const std::string& path() const { return path_; }

 private:
  bool writes() const { return wanted_ && parent_.rank() == 0; }
  std::string line_of(TransportKind kind) const {
    return fmt::format("{} of {}", name_of(kind), library_);
  }
  /// A folder that cannot be written to is told of by those whose results go there.
  void save() const {
    std::error_code ignored;
    if (lines_.empty()) {
      std::filesystem::remove(path_, ignored);
      return;
    }
    std::ofstream file(path_, std::ios::trunc);
    for (const std::string& line : lines_) file << line << "\n";
  }

  const Communicator& parent_;
  std::string path_;
  std::string library_;
  bool wanted_;  // by rank 0, whose output may be a pipe where others' is not
  std::vector<std::string> lines_;
  std::vector<TransportKind> crashed_;
};

class Search {
 public:
  Search(const Communicator& parent, const TransportSearch& search)
      : parent_(parent),
        search_(search),
        on_device_(search.device != nullptr),
        direct_(!on_device_ || everywhere(parent, mpi_library::claims_device_memory())),
        note_(parent, on_device_ && direct_ ? search.note : std::string()) {}

  TransportChoice find() {
    const bool over_ucx = on_device_ && everywhere(parent_, mpi_library::over_ucx());
    for (const TransportKind kind : transports_to_try(on_device_, over_ucx)) {
      if (!may_try(kind) || !works(kind)) continue;
      choice_.kind = faster_staged(kind) ? TransportKind::pairwise_staged : kind;
      if (on_device_ && !info_of(choice_.kind).staged) search_.device->lend();
      return choice_;
    }
    fail(
        "transport '{}' does not work here (a test exchange between all ranks lost or altered "
        "rows); try another --transport or other MPI settings",
        wanted_name());
  }

 private:
  std::string_view wanted_name() const {
    return search_.wanted ? name_of(*search_.wanted) : "auto";
  }

  bool may_try(TransportKind kind) {
    const TransportInfo& transport = info_of(kind);
    if (search_.wanted.value_or(kind) != kind) return false;
    if (transport.staged && !on_device_) {
      if (!search_.wanted) return false;
      fail(
          "transport '{}' stages device memory, and here rows are in host memory; use --transport "
          "ialltoallv or pairwise",
          wanted_name());
    }
    if (!transport.staged && !direct_) {
      if (!search_.wanted) return false;
      fail(
          "transport '{}' cannot move device memory here ({} says that it is not CUDA-aware); use "
          "--transport pairwise-staged, or an MPI library with CUDA (jobs/build-openmpi-cuda.sh)",
          wanted_name(), Environment::library());
    }
    if (search_.wanted || transport.staged || !note_.crashed(kind)) return true;
    choice_.left_out += fmt::format(
        "transport {} is left out: an earlier start ended while it was tried on device memory ({} "
        "says so; remove it to try again)\n",
        transport.name, note_.path());
    return false;
  }

  CanaryResult fly(TransportKind kind, bool large) {
    const CanaryResult result =
        fly_canary(parent_, kind, {search_.device, large, search_.patience});
    require(result.ended,
            "transport '{}' does not work here: a test exchange between all ranks did not end "
            "within {:.0f} s, and the MPI library may still use its memory; start again with "
            "another --transport or other MPI settings",
            name_of(kind), std::chrono::duration<double>(search_.patience).count());
    choice_.tried.push_back({kind, result.passed, result.bytes_per_s});
    return result;
  }

  bool works(TransportKind kind) {
    if (!on_device_ || info_of(kind).staged) return fly(kind, /*large=*/false).passed;
    note_.trying(kind);
    const bool passed = fly(kind, /*large=*/true).passed;
    note_.ended(kind);
    return passed;
  }

  /// Whether staging carries more than the direct way `kind`, which has just been tried.
  bool faster_staged(TransportKind kind) {
    const double direct = choice_.tried.back().bytes_per_s;
    if (!on_device_ || info_of(kind).staged || search_.wanted || direct <= 0) return false;
    const CanaryResult staged = fly(TransportKind::pairwise_staged, /*large=*/true);
    return staged.passed && staged.bytes_per_s > clearly * direct;
  }

  const Communicator& parent_;
  const TransportSearch& search_;
  bool on_device_;
  bool direct_;
  Note note_;
  TransportChoice choice_;
};

}  // namespace

std::vector<TransportKind> transports_to_try(bool on_device, bool over_ucx) {
  std::vector<TransportKind> order;
  for (const TransportInfo& transport : transports) order.push_back(transport.kind);
  if (on_device && !over_ucx) {
    std::stable_partition(order.begin(), order.end(),
                          [](TransportKind kind) { return kind == TransportKind::pairwise; });
  }
  return order;
}

bool canary(const Communicator& parent, TransportKind kind, compute::DeviceMemory* device) {
  return fly_canary(parent, kind, {device, /*large=*/device != nullptr}).passed;
}

TransportChoice find_transport(const Communicator& parent, const TransportSearch& search) {
  return Search(parent, search).find();
}

TransportKind choose_transport(const Communicator& parent, std::optional<TransportKind> wanted,
                               compute::DeviceMemory* device) {
  TransportSearch search;
  search.wanted = wanted;
  search.device = device;
  return find_transport(parent, search).kind;
}

}  // namespace atl::comm
