#include "app/run/progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

namespace atl {

namespace {

constexpr double bar_period_s = 0.1;
constexpr double line_period_s = 10.0;
constexpr int bar_width = 30;

/// mpirun passes our stderr through a pipe; its own stderr tells whether a person is watching.
bool watched_by_a_person() {
  if (isatty(STDERR_FILENO) != 0) return true;
  std::error_code error;
  const auto target = std::filesystem::read_symlink(
      fmt::format("/proc/{}/fd/2", static_cast<long>(getppid())), error);
  return !error &&
         (target.string().starts_with("/dev/pts/") || target.string().starts_with("/dev/tty"));
}

std::string duration(double seconds) {
  const auto s = static_cast<long>(std::clamp(seconds, 0.0, 1e7));
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

}  // namespace

Progress::Progress(std::optional<ProgressStyle> style)
    : style_(style                   ? *style
             : watched_by_a_person() ? ProgressStyle::bar
                                     : ProgressStyle::lines) {}

double Progress::period() const {
  return style_ == ProgressStyle::bar ? bar_period_s : line_period_s;
}

bool Progress::due(double seconds) const {
  if (style_ == ProgressStyle::none) return false;
  // The first line of a log comes after one period: a short job needs none.
  if (style_ == ProgressStyle::lines && !printed_ && seconds < period()) return false;
  return seconds - last_print_ >= period();
}

void Progress::update(std::int64_t total, std::int64_t left, double seconds,
                      const std::string& remarks) {
  last_print_ = seconds;
  printed_ = true;
  total = std::max<std::int64_t>(total, 1);
  const std::int64_t done = std::clamp<std::int64_t>(total - left, 0, total);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  const std::string eta =
      rate > 0 ? duration(static_cast<double>(total - done) / rate) : std::string("?");
  const double share = static_cast<double>(done) / static_cast<double>(total);
  if (style_ == ProgressStyle::bar) {
    const int full = static_cast<int>(share * bar_width);
    // What an earlier, longer line left is cleared to the end.
    fmt::print(stderr,
               "\r[{:#<{}}{:.<{}}] {:3.0f} %  {}/{} tokens  {:.0f} tokens/s  ETA {}{}{}\x1b[K", "",
               full, "", bar_width - full, share * 100, done, total, rate, eta,
               remarks.empty() ? "" : "  ", remarks);
  } else {
    fmt::print(stderr,
               "{:.0f} s: {} of at most {} tokens ({:.0f} %), {:.0f} tokens/s, ETA {}{}{}\n",
               seconds, done, total, share * 100, rate, eta, remarks.empty() ? "" : "; ", remarks);
  }
  std::fflush(stderr);
}

void Progress::finish() {
  if (style_ == ProgressStyle::bar && printed_) {
    fmt::print(stderr, "\n");
    std::fflush(stderr);
  }
}

}  // namespace atl
