#include "app/run/cluster.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "comm/communicator.hpp"
#include "comm/environment.hpp"
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"
#include "io/text_file.hpp"

namespace atl {

using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr const char* format_name = "atoll-cluster";
constexpr int format_version = 1;
constexpr std::size_t most_bytes = std::size_t{16} << 20;
constexpr int most_ranks = 1 << 20;  // in all: a typing error is not worth a terabyte of memory

json speed_json(const std::optional<comm::LinkSpeed>& speed) {
  if (!speed) return nullptr;
  return {{"latency_s", speed->latency_s},
          {"pair_bytes_per_s", speed->pair_bytes_per_s},
          {"node_bytes_per_s", speed->node_bytes_per_s}};
}

double positive_number(const json& object, const char* key, const std::string& where) {
  require(object.contains(key) && object[key].is_number(), "{} lacks a number \"{}\"", where, key);
  const double value = object[key].get<double>();
  require(std::isfinite(value) && value > 0, "{}: \"{}\" must be above 0", where, key);
  return value;
}

std::optional<comm::LinkSpeed> parse_speed(const json& links, const char* key,
                                           const std::string& name) {
  const std::string where = fmt::format("{}: \"links\": \"{}\"", name, key);
  require(links.contains(key), "{} is missing (null, where there is no such link)", where);
  const json& speed = links[key];
  if (speed.is_null()) return std::nullopt;
  require(speed.is_object(), "{} is not an object", where);
  return comm::LinkSpeed{positive_number(speed, "latency_s", where),
                         positive_number(speed, "pair_bytes_per_s", where),
                         positive_number(speed, "node_bytes_per_s", where)};
}

comm::Topology parse_nodes(const json& file, const std::string& name) {
  require(file.contains("nodes") && file["nodes"].is_array() && !file["nodes"].empty(),
          "{} lacks a list \"nodes\"", name);
  comm::Topology topology;
  for (const json& node : file["nodes"]) {
    require(node.is_object() && node.contains("name") && node["name"].is_string() &&
                node.contains("ranks") && node["ranks"].is_number_integer(),
            "{}: each of \"nodes\" takes a \"name\" and a number of \"ranks\"", name);
    const auto ranks = node["ranks"].get<std::int64_t>();
    require(ranks >= 1 && ranks + topology.num_ranks() <= most_ranks,
            "{}: node {} has {} ranks; that must be 1 or more, and at most {} in all", name,
            node["name"].get<std::string>(), ranks, most_ranks);
    for (int local = 0; local < ranks; ++local) {
      topology.node_of.push_back(topology.num_nodes());
      topology.local_rank_of.push_back(local);
    }
    topology.node_names.push_back(node["name"]);
  }
  return topology;
}

/// Name and number of ranks of each node, in the topology's order.
std::vector<std::pair<std::string, int>> nodes_of(const comm::Topology& topology) {
  std::vector<std::pair<std::string, int>> nodes;
  for (const std::string& name : topology.node_names) nodes.emplace_back(name, 0);
  for (const int node : topology.node_of) ++nodes[static_cast<std::size_t>(node)].second;
  return nodes;
}

/// The file's text; "" where there is none.
std::string read_if_there(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return "";
  require(std::filesystem::is_regular_file(path, ignored), "{} is no file; check --cluster", path);
  require(std::filesystem::file_size(path, ignored) <= most_bytes,
          "{} is too large for a cluster file; check --cluster", path);
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  require(stream.good() || stream.eof(), "cannot read {}; check its permissions", path);
  return text;
}

}  // namespace

json links_json(const comm::Links& links) {
  return {{"inside_node", speed_json(links.inside)}, {"between_nodes", speed_json(links.between)}};
}

std::string cluster_text(const Cluster& cluster) {
  ordered_json nodes = ordered_json::array();
  for (const auto& [name, ranks] : nodes_of(cluster.topology)) {
    nodes.push_back({{"name", name}, {"ranks", ranks}});
  }
  const ordered_json file = {{"format", format_name},
                             {"format_version", format_version},
                             {"nodes", nodes},
                             {"links", links_json(cluster.links)},
                             {"measured", cluster.measured},
                             {"mpi", cluster.mpi}};
  return io::json_text(file, 1) + "\n";
}

Cluster parse_cluster(const std::string& text, const std::string& name) {
  io::require_shallow_json(text, name);
  const json file = json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(file.is_object() && file.contains("format") && file["format"] == format_name,
          "{} is not a cluster file (JSON with \"format\": \"{}\"); check --cluster", name,
          format_name);
  require(file.contains("format_version") && file["format_version"] == format_version,
          "{} is a cluster file of another version; this program reads version {}", name,
          format_version);
  Cluster cluster;
  cluster.topology = parse_nodes(file, name);
  require(file.contains("links") && file["links"].is_object(), "{} lacks \"links\"", name);
  cluster.links.inside = parse_speed(file["links"], "inside_node", name);
  cluster.links.between = parse_speed(file["links"], "between_nodes", name);
  if (file.contains("measured") && file["measured"].is_string())
    cluster.measured = file["measured"];
  if (file.contains("mpi") && file["mpi"].is_string()) cluster.mpi = file["mpi"];
  return cluster;
}

Cluster read_cluster(const std::string& path) {
  const std::string text = read_if_there(path);
  require(!text.empty(), "cannot read {}: there is no such file, or nothing in it; check --cluster",
          path);
  return parse_cluster(text, path);
}

bool same_machine(const comm::Topology& a, const comm::Topology& b) {
  auto of_a = nodes_of(a);
  auto of_b = nodes_of(b);
  std::sort(of_a.begin(), of_a.end());
  std::sort(of_b.begin(), of_b.end());
  return of_a == of_b;
}

Cluster find_cluster(const comm::Communicator& world, const comm::Topology& topology,
                     const std::string& file, bool measure) {
  Cluster cluster;
  std::string text;
  world.agree([&] {
    if (world.rank() != 0 || file.empty()) return;
    text = read_if_there(file);
    if (text.empty()) return;
    const bool fits = same_machine(parse_cluster(text, file).topology, topology);
    if (!fits || measure) text.clear();
  });
  text = world.broadcast(text, 0);
  if (!text.empty()) {
    cluster = parse_cluster(text, file);
    cluster.topology = topology;
    return cluster;
  }
  cluster.topology = topology;
  cluster.links = comm::measure_links(world, topology);
  const std::string now = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  cluster.measured = world.broadcast(now, 0);  // ranks may be on two sides of a second
  cluster.mpi = comm::Environment::library();
  world.agree([&] {
    if (world.rank() != 0 || file.empty()) return;
    io::TextFile written(file);
    written.write(cluster_text(cluster));
    written.close();
  });
  return cluster;
}

}  // namespace atl
