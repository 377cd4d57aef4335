#include "tests/emulated_cuda/settings.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

namespace emulated {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& value, const char* form) {
  std::fprintf(stderr, "emulated CUDA: %s=%s is not understood; it takes %s\n", name, value.c_str(),
               form);
  std::exit(2);
}

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  char* end = nullptr;
  const std::uint64_t value = std::strtoull(text, &end, 10);
  if (end == text || *end != '\0') refuse(name, text, "a number");
  return value;
}

Settings read_settings() {
  Settings s;
  s.devices = static_cast<int>(number("ATL_EMULATED_DEVICES", 1));
  if (const char* text = std::getenv("ATL_EMULATED_CAPABILITY"))
    if (std::sscanf(text, "%d.%d", &s.major, &s.minor) != 2)
      refuse("ATL_EMULATED_CAPABILITY", text, "MAJOR.MINOR");
  s.memory_bytes = number("ATL_EMULATED_MEMORY_MIB", 4096) << 20U;
  s.seed = number("ATL_EMULATED_SEED", 1);
  s.protect = number("ATL_EMULATED_PROTECT", 0) != 0;
  s.cuda_aware = number("ATL_EMULATED_CUDA_AWARE", 0) != 0;
  s.before_mpi = number("ATL_EMULATED_BEFORE_MPI", 0) != 0;
  if (const char* text = std::getenv("ATL_EMULATED_ORDER")) {
    s.eager = std::string(text) == "eager";
    if (!s.eager && std::string(text) != "adversarial")
      refuse("ATL_EMULATED_ORDER", text, "adversarial or eager");
  }
  if (const char* text = std::getenv("ATL_EMULATED_WGMMA")) {
    s.other_wgmma = std::string(text) == "other";
    if (!s.other_wgmma) refuse("ATL_EMULATED_WGMMA", text, "other");
  }
  return s;
}

struct Failure {
  std::string name;
  int call = 0;
  bool onwards = false;
  int code = 0;
};

/// True where the failures are meant for another process of the job.
bool spared() {
  const char* wanted = std::getenv("ATL_EMULATED_FAIL_RANK");
  if (wanted == nullptr) return false;
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"})
    if (const char* rank = std::getenv(name)) return std::string(rank) != wanted;
  return std::string(wanted) != "0";
}

std::vector<Failure> read_failures() {
  std::vector<Failure> failures;
  const char* text = std::getenv("ATL_EMULATED_FAIL");
  if (text == nullptr || spared()) return failures;
  std::istringstream all(text);
  for (std::string one; std::getline(all, one, ',');) {
    const std::size_t second = one.rfind(':');
    const std::size_t first =
        second == std::string::npos || second == 0 ? std::string::npos : one.rfind(':', second - 1);
    if (first == std::string::npos) refuse("ATL_EMULATED_FAIL", one, "NAME:CALL:ERROR");
    Failure failure{one.substr(0, first), std::atoi(one.c_str() + first + 1),
                    one[second - 1] == '+', std::atoi(one.c_str() + second + 1)};
    if (failure.call < 1 || failure.code < 1)
      refuse("ATL_EMULATED_FAIL", one, "NAME:CALL:ERROR with numbers above 0");
    failures.push_back(std::move(failure));
  }
  return failures;
}

}  // namespace

const Settings& settings() {
  static const Settings read = read_settings();
  return read;
}

int injected_failure(const std::string& name) {
  static const std::vector<Failure> failures = read_failures();
  if (failures.empty()) return 0;
  static std::mutex mutex;
  static std::map<std::string, int> calls;
  const std::lock_guard lock(mutex);
  const int call = ++calls[name];
  for (const Failure& failure : failures)
    if (failure.name == name && (failure.onwards ? call >= failure.call : call == failure.call))
      return failure.code;
  return 0;
}

}  // namespace emulated
