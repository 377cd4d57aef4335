#include "comm/openmp_binding.hpp"

#include <strings.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace atl::comm {

namespace {

constexpr std::array variables = {"OMP_PROC_BIND", "OMP_PROC_BIND_ALL", "OMP_PLACES",
                                  "GOMP_CPU_AFFINITY", "KMP_AFFINITY"};

/// Entries of the first environment, which live as long as the process.
std::array<const char*, variables.size()> taken_out{};

// These two run before any library is set up: they call nothing, sanitizers included.
__attribute__((no_sanitize("address", "undefined"))) bool names(const char* entry,
                                                                const char* name) {
  while (*name != '\0' && *entry == *name) {
    ++entry;
    ++name;
  }
  return *name == '\0' && *entry == '=';
}

__attribute__((no_sanitize("address", "undefined"))) void take_bindings_out(int /*argc*/,
                                                                            char** /*argv*/,
                                                                            char** environment) {
  const char* const* const wanted = variables.data();
  const char** const taken = taken_out.data();
  char** kept = environment;
  for (char** entry = environment; *entry != nullptr; ++entry) {
    bool keep = true;
    for (std::size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); ++i) {
      if (!names(*entry, wanted[i])) continue;
      taken[i] = *entry;
      keep = false;
    }
    if (keep) *kept++ = *entry;
  }
  *kept = nullptr;
}

// The loader calls these of the executable before the constructors of any library.
__attribute__((section(".preinit_array"),
               used)) void (*const before_all_libraries)(int, char**, char**) = take_bindings_out;

}  // namespace

std::vector<std::string> openmp_bindings_not_followed() {
  std::vector<std::string> found;
  for (const char* entry : taken_out) {
    if (entry == nullptr) continue;
    const char* value = std::strchr(entry, '=') + 1;
    const auto is = [value](const char* text) { return strcasecmp(value, text) == 0; };
    if (!is("false") && !is("none") && !is("disabled")) found.emplace_back(entry);
  }
  return found;
}

void restore_openmp_bindings() {
  for (const char* entry : taken_out) {
    if (entry != nullptr) putenv(const_cast<char*>(entry));
  }
}

}  // namespace atl::comm
