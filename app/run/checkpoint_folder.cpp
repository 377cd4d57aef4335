#include "app/run/checkpoint_folder.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "app/plan/checkpoint_policy.hpp"
#include "app/run/identity.hpp"
#include "compute/error.hpp"

namespace atl {

using nlohmann::ordered_json;
namespace fs = std::filesystem;

namespace {

constexpr std::string_view file_prefix = "checkpoint-";
constexpr std::string_view file_suffix = ".h5";
/// Files with higher numbers are nobody's checkpoints, and leave room to count on.
constexpr std::int64_t max_number = 1000000000000;

/// The number in a checkpoint's file name; -1 for other files.
std::int64_t number_of(const std::string& name) {
  if (!name.starts_with(file_prefix) || !name.ends_with(file_suffix)) return -1;
  const char* begin = name.data() + file_prefix.size();
  const char* end = name.data() + name.size() - file_suffix.size();
  std::int64_t pass = -1;
  return std::from_chars(begin, end, pass).ptr == end && pass <= max_number ? pass : -1;
}

bool is_leftover(const std::string& name) {
  return name.starts_with(file_prefix) && name.find(".h5.partial.") != std::string::npos;
}

/// The state of a checkpoint file; null for one that is damaged, or no checkpoint at all.
ordered_json readable_state(const std::string& path) {
  try {
    return state_of(io::CheckpointReader(path));
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace

ordered_json state_of(const io::CheckpointReader& reader) {
  auto state = ordered_json::parse(reader.contents().state, nullptr, false);
  require(state.is_object() && state.contains("run") && state.contains("step") &&
              state["step"].is_number_integer(),
          "cannot read {}: its state says neither run nor step", reader.path());
  return state;
}

void require_own(const std::string& path, const ordered_json& state, const IdentityLike& identity) {
  const std::string differs = difference(state.at("run"), identity(state.at("run")));
  require(differs.empty(),
          "{} is the checkpoint of another run: {}; run with what it was started with (options and "
          "program), or give "
          "another --checkpoint-dir",
          path, differs);
}

std::string CheckpointFolder::file_of(std::int64_t number) const {
  return fmt::format("{}/{}{:09}{}", path_, file_prefix, number, file_suffix);
}

std::vector<std::string> CheckpointFolder::files() const {
  std::vector<std::pair<std::int64_t, std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) {
    const std::int64_t number = number_of(entry.path().filename().string());
    if (number >= 0) found.emplace_back(number, entry.path().string());
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<std::string> paths;
  for (auto& [number, path] : found) paths.push_back(std::move(path));
  return paths;
}

ordered_json CheckpointFolder::recorded() const {
  if (empty()) return nullptr;
  for (const std::string& path : files()) {
    const ordered_json state = readable_state(path);
    if (!state.is_null()) return state.at("run");
  }
  return nullptr;
}

void CheckpointFolder::create() const {
  std::error_code error;
  fs::create_directories(path_, error);
  const int writable = access(path_.c_str(), W_OK | X_OK);
  require(!error && writable == 0,
          "cannot write checkpoints to {} ({}); check --checkpoint-dir and its permissions", path_,
          error ? error.message() : std::strerror(errno));
}

std::int64_t CheckpointFolder::take_over(const IdentityLike& identity, bool resume) {
  const auto paths = files();
  for (auto path = paths.rbegin(); path != paths.rend(); ++path) {
    const ordered_json state = readable_state(*path);
    if (state.is_null()) continue;  // it is in nobody's way
    if (!resume) require_own(*path, state, identity);
    if (difference(state.at("run"), identity(state.at("run"))).empty()) add(*path);
  }
  std::error_code ignored;
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(path_, ignored)) {
    if (is_leftover(entry.path().filename().string())) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove(path, ignored);
  return paths.empty() ? 0 : number_of(fs::path(paths[0]).filename().string()) + 1;
}

void CheckpointFolder::retire(const std::string& needed) {
  for (const std::string& file : retired(own_, needed)) {
    std::error_code ignored;
    fs::remove(file, ignored);
    std::erase(own_, file);
  }
}

}  // namespace atl
