#pragma once
// An option that takes the text of one of some values.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace atl {

/// A value as on the command line.
template <typename T>
std::string text_of_choice(const T& value) {
  return std::string(name_of(value));
}
template <typename T>
std::string text_of_choice(const std::optional<T>& value) {
  return value ? text_of_choice(*value) : "auto";
}

template <typename T>
CLI::Option* add_choice(CLI::App& app, const std::string& name, T& value,
                        const std::vector<T>& values, const std::string& about) {
  std::vector<std::string> texts;
  for (const T& each : values) texts.push_back(text_of_choice(each));
  const auto take = [&value, values, texts](const std::string& text) {
    const auto found = std::find(texts.begin(), texts.end(), text);
    value = values[static_cast<std::size_t>(found - texts.begin())];
  };
  return app.add_option_function<std::string>(name, take, about)
      ->check(CLI::IsMember(texts))
      ->default_str(text_of_choice(value));
}

}  // namespace atl
