// What the texts of some options mean.

#include <algorithm>
#include <charconv>

#include "app/config.hpp"
#include "compute/error.hpp"

namespace atl {

Interval interval_of(const std::string& text) {
  const auto digits = text.find_first_not_of("0123456789");
  const std::string unit = digits == std::string::npos ? "steps" : text.substr(digits);
  std::int64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  if (number > 0 && number <= 1000000000) {
    const auto value = static_cast<double>(number);
    if (unit == "steps" || unit == "-steps") return {number, 0};
    if (unit == "s" || unit == "-seconds") return {0, value};
    if (unit == "m") return {0, value * 60};
    if (unit == "h") return {0, value * 3600};
  }
  throw UsageError(fmt::format(
      "--checkpoint-every: \"{}\" is no interval; give steps (200 or 200steps) or time (90s, 10m, "
      "2h)",
      text));
}

std::vector<int> layers_of(const std::string& text, int num_layers) {
  std::vector<int> layers;
  if (text == "all") {
    for (int layer = 0; layer < num_layers; ++layer) layers.push_back(layer);
    return layers;
  }
  const auto wrong = [&](std::string_view part) {
    return UsageError(fmt::format(
        "--dump-activations {}: \"{}\" is no layer of this model (it has 0 to {}); give "
        "all, or numbers with commas between",
        text, part, num_layers - 1));
  };
  std::string_view rest = text;
  for (bool more = true; more;) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    int layer = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), layer);
    if (error != std::errc() || end != part.data() + part.size() || layer < 0 ||
        layer >= num_layers) {
      throw wrong(part);
    }
    layers.push_back(layer);
    more = comma != std::string_view::npos;
    if (more) rest.remove_prefix(comma + 1);
  }
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

std::vector<int> nodes_of_ranks(const std::string& text, int num_ranks) {
  std::vector<int> sizes;
  std::string_view rest = text;
  for (bool more = true; more;) {
    const std::size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    int size = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), size);
    if (error != std::errc() || end != part.data() + part.size() || size < 1) {
      throw UsageError(fmt::format(
          "--node-ranks {}: \"{}\" is no number of ranks; give one number, or one for each node "
          "with commas between",
          text, part));
    }
    sizes.push_back(size);
    more = comma != std::string_view::npos;
    if (more) rest.remove_prefix(comma + 1);
  }
  std::vector<int> node_of;
  for (std::size_t node = 0; static_cast<int>(node_of.size()) < num_ranks; ++node) {
    if (sizes.size() > 1 && node == sizes.size()) break;
    node_of.insert(node_of.end(), static_cast<std::size_t>(sizes[sizes.size() > 1 ? node : 0]),
                   static_cast<int>(node));
  }
  if (static_cast<int>(node_of.size()) != num_ranks) {
    throw UsageError(fmt::format("--node-ranks {} does not make {} ranks", text, num_ranks));
  }
  return node_of;
}

}  // namespace atl
