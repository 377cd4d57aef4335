#include "app/run/energy.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <span>

#include "app/run/system_files.hpp"

namespace atl {

using nlohmann::json;

namespace {

namespace fs = std::filesystem;

/// The number at the beginning of a file; -1: it cannot be read.
double number_in(const fs::path& path) {
  double value = -1;
  std::ifstream file(path);
  file >> value;
  return file ? value : -1;
}

std::string word_in(const fs::path& path) {
  std::string word;
  std::ifstream(path) >> word;
  return word;
}

/// NVML's calls, of the library that comes with the driver.
struct Nvml {
  void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  int (*count)(unsigned*) = nullptr;
  int (*device)(unsigned, void**) = nullptr;
  int (*energy)(void*, unsigned long long*) = nullptr;

  template <class Call>
  bool find(Call*& call, const char* name) {
    call = library == nullptr ? nullptr : reinterpret_cast<Call*>(dlsym(library, name));
    return call != nullptr;
  }
  bool start() {
    int (*init)() = nullptr;
    return find(init, "nvmlInit_v2") && find(count, "nvmlDeviceGetCount_v2") &&
           find(device, "nvmlDeviceGetHandleByIndex_v2") &&
           find(energy, "nvmlDeviceGetTotalEnergyConsumption") && init() == 0;
  }
};

Nvml& nvml() {
  static Nvml library;  // stays loaded: the CUDA backend may use it too
  return library;
}

}  // namespace

/// One counter: how to read it, in joules, and where it begins again at 0.
struct EnergyCounters::Counter {
  std::function<double()> read;  ///< negative: it could not be read
  double range = 0;              ///< 0: never begins again
  double last = 0;
  double sum = 0;

  void take() {
    const double now = read();
    if (now < 0) return;
    sum += now >= last ? now - last : std::max(0.0, now + range - last);
    last = now;
  }
};

EnergyCounters::EnergyCounters(const std::string& root) {
  open_node(root);
  if (counters_.empty()) {
    open_rapl(root);
    open_gpus();
  }
  for (const auto& counter : counters_) counter->last = counter->read();
  if (counters_.empty() && why_not_.empty()) {
    why_not_ = "no counters of RAPL, NVML or HPE Cray on this node";
  }
}

EnergyCounters::~EnergyCounters() = default;

void EnergyCounters::open_node(const std::string& root) {
  const fs::path file = root + "/sys/cray/pm_counters/energy";
  if (number_in(file) < 0) return;
  counters_.push_back(std::make_unique<Counter>());
  counters_.back()->read = [file] { return number_in(file); };
  source_ = "pm_counters (whole nodes)";
}

void EnergyCounters::open_rapl(const std::string& root) {
  std::vector<std::string> names;
  for (const fs::path& zone : entries_of(root + "/sys/class/powercap")) {
    const std::string zone_name = zone.filename();
    // "intel-rapl:0" is a package, also of AMD; "intel-rapl:0:1" a part of it.
    if (!zone_name.starts_with("intel-rapl:") ||
        std::count(zone_name.begin(), zone_name.end(), ':') != 1) {
      continue;
    }
    const std::string name = word_in(zone / "name");
    if (!name.starts_with("package")) continue;
    if (number_in(zone / "energy_uj") < 0) {
      why_not_ = fmt::format("{} may not be read by this user", (zone / "energy_uj").string());
      continue;
    }
    counters_.push_back(std::make_unique<Counter>());
    counters_.back()->read = [file = zone / "energy_uj"] { return number_in(file) * 1e-6; };
    counters_.back()->range = std::max(0.0, number_in(zone / "max_energy_range_uj")) * 1e-6;
    names.push_back(name);
  }
  if (!names.empty()) source_ = fmt::format("RAPL ({})", fmt::join(names, ", "));
}

void EnergyCounters::open_gpus() {
  unsigned devices = 0;
  unsigned found = 0;
  if (!nvml().start() || nvml().count(&devices) != 0) return;
  for (unsigned i = 0; i < devices; ++i) {
    void* device = nullptr;
    unsigned long long millijoules = 0;
    if (nvml().device(i, &device) != 0 || nvml().energy(device, &millijoules) != 0) continue;
    counters_.push_back(std::make_unique<Counter>());
    counters_.back()->read = [device] {
      unsigned long long now = 0;
      return nvml().energy(device, &now) == 0 ? static_cast<double>(now) * 1e-3 : -1.0;
    };
    ++found;
  }
  if (found > 0) {
    source_ += fmt::format("{}NVML ({} GPU{})", source_.empty() ? "" : " + ", found,
                           found == 1 ? "" : "s");
  }
}

double EnergyCounters::joules() {
  double sum = 0;
  for (const auto& counter : counters_) {
    counter->take();
    sum += counter->sum;
  }
  return sum;
}

PhaseEnergy::PhaseEnergy(bool reads) {
  if (reads) counters_ = std::make_unique<EnergyCounters>();
}

void PhaseEnergy::take() {
  if (counters_ == nullptr || counters_->source().empty()) return;
  const double now = counters_->joules();
  if (phase_ >= 0) joules_[static_cast<std::size_t>(phase_)] += now - last_;
  last_ = now;
}

void PhaseEnergy::enter(Phase phase) {
  take();
  phase_ = static_cast<int>(phase);
}

void PhaseEnergy::leave() {
  take();
  phase_ = -1;
}

json PhaseEnergy::report(const comm::Communicator& world,
                         const std::array<std::int64_t, 2>& tokens) const {
  std::array<double, 2> joules = joules_;
  world.allreduce(std::span(joules), comm::Communicator::Reduce::sum);
  const bool reads = counters_ != nullptr;
  const bool readable = reads && !counters_->source().empty();
  std::array<std::int64_t, 2> nodes = {reads ? 1 : 0, readable ? 1 : 0};
  world.allreduce(std::span(nodes), comm::Communicator::Reduce::sum);
  // Rank 0 reads for its node.
  if (world.rank() != 0) return nullptr;
  if (nodes[1] < nodes[0]) {
    return {{"source", nullptr},
            {"why", fmt::format("not readable here: on {} of {} nodes; {}", nodes[0] - nodes[1],
                                nodes[0], readable ? "this one's can be" : counters_->why_not())}};
  }
  json energy = {{"source", counters_->source()}, {"nodes", nodes[0]}};
  for (std::size_t phase = 0; phase < 2; ++phase) {
    energy[phase == 0 ? "prefill" : "decode"] = {
        {"joules", joules[phase]},
        {"joules_per_token", tokens[phase] > 0
                                 ? json(joules[phase] / static_cast<double>(tokens[phase]))
                                 : json(nullptr)}};
  }
  return energy;
}

}  // namespace atl
