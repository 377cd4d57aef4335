#include "app/run/update_folder.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "compute/error.hpp"
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"
#include "io/text_file.hpp"

namespace atl {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr double seconds_between_looks = 0.2;
constexpr const char* taken = ".taken";

/// What {"model": PATH} says. Throws Error for anything else.
std::string model_of(const std::string& text, const std::string& path) {
  io::require_shallow_json(text, path);
  const json update = json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(update.is_object() && update.contains("model") && update["model"].is_string() &&
              !update["model"].get<std::string>().empty(),
          "it is not {{\"model\": PATH}} (JSON, with the path of a model file)");
  for (const auto& [key, ignored] : update.items()) {
    require(key == "model", "unknown key {}; an update has \"model\" alone", io::shown(json(key)));
  }
  return update["model"].get<std::string>();
}

}  // namespace

UpdateFolder::UpdateFolder(const std::string& path) : path_(path) {
  std::error_code error;
  fs::create_directories(path_, error);
  const int writable = access(path_.c_str(), W_OK | X_OK);
  require(!error && writable == 0, "cannot write to {} ({}); check --control and its permissions",
          path_, error ? error.message() : std::strerror(errno));
  claimed_ = fs::exists(file(taken), error);
  give_back();  // of a run that was ended
}

const std::string& UpdateFolder::waiting(double now) {
  if (!model_.empty() || !looks_ || now < next_look_) return model_;
  next_look_ = now + seconds_between_looks;
  if (claimed_ || claim()) read();
  return model_;
}

/// First, so that what is read is what was claimed.
bool UpdateFolder::claim() {
  std::error_code error;
  fs::rename(file(), file(taken), error);
  if (error && error != std::errc::no_such_file_or_directory) {
    fmt::print(stderr, "no updates of the weights are looked for: cannot rename {} ({})\n", file(),
               error.message());
    looks_ = false;
  }
  claimed_ = !error;
  return claimed_;
}

void UpdateFolder::read() {
  std::ifstream stream(file(taken), std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  try {
    model_ = model_of(text, file());
  } catch (const Error& error) {
    // It may be still being written: only what stays as it is, is refused.
    if (text == text_) return refuse(error.what());
    text_ = text;
  }
}

void UpdateFolder::rename_claimed(const std::string& to) {
  std::error_code error;
  fs::rename(file(taken), to, error);
  if (error) {
    fmt::print(stderr, "no updates of the weights are looked for: cannot rename {} ({})\n",
               file(taken), error.message());
    looks_ = false;
  }
  claimed_ = false;
  model_.clear();
  text_.reset();
}

void UpdateFolder::done() {
  rename_claimed(file(".done"));
}

void UpdateFolder::refuse(const std::string& reason) {
  fmt::print(stderr, "{} is refused: {}; the run goes on with the weights that it has\n", file(),
             reason);
  try {
    io::TextFile text(file(".refused.txt"));
    text.write(reason + "\n");
    text.close();
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
  }
  rename_claimed(file(".refused"));
}

void UpdateFolder::give_back() {
  if (!claimed_) return;
  std::error_code ignored;
  if (fs::exists(file(), ignored)) {
    fs::remove(file(taken), ignored);
    claimed_ = false;
  } else {
    rename_claimed(file());
  }
}

}  // namespace atl
