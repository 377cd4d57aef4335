#pragma once
// Lines that measurements print for the table of perf/gpu_check.sh, told at once, so that a run
// that is cut short has those that it came to:
//
//   = VERDICT|NAME|FIGURE|FLOOR|FRACTION|NOTE
//
// The floor is what the device's measured rates allow, the fraction what was reached of it.

#include <fmt/format.h>

#include <cstdio>
#include <string>
#include <string_view>

namespace atl::perf {

inline void tell_line(std::string_view verdict, std::string_view name, std::string_view figure,
                      std::string_view floor, std::string_view fraction, std::string note) {
  for (char& c : note) {
    if (c == '|' || c == '\n') c = ' ';
  }
  fmt::print("= {}|{}|{}|{}|{}|{}\n", verdict, name, figure, floor, fraction, note);
  std::fflush(stdout);
}

inline void tell_time(std::string_view name, double seconds, double floor_seconds,
                      std::string note = {}) {
  tell_line("PASSED", name, fmt::format("{:.4g} ms", seconds * 1e3),
            fmt::format("{:.4g} ms", floor_seconds * 1e3),
            fmt::format("{:.2f}", floor_seconds / seconds), std::move(note));
}

inline void tell_fact(std::string_view name, std::string_view figure, std::string note = {}) {
  tell_line("PASSED", name, figure, "-", "-", std::move(note));
}

inline void tell_failure(std::string_view name, std::string note) {
  tell_line("FAILED", name, "-", "-", "-", std::move(note));
}

}  // namespace atl::perf
