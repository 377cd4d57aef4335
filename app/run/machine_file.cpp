#include "app/run/machine_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string_view>

#include "app/run/processor.hpp"
#include "compute/error.hpp"
#include "io/json_depth.hpp"
#include "io/json_shown.hpp"

namespace atl {

using nlohmann::json;

namespace {

constexpr const char* format_name = "atoll-machine";

/// What a figure may be: outside, somebody mistook its unit.
struct Bounds {
  double least = 0, most = 0;
  const char* unit = "";
};
constexpr Bounds operations{1e8, 1e17, "operations per second"};
constexpr Bounds memory_rate{1e8, 1e15, "bytes per second"};
constexpr Bounds link_rate{1e5, 1e14, "bytes per second"};
constexpr Bounds memory_size{1e7, 1e14, "bytes"};
constexpr Bounds latency{1e-9, 1, "seconds"};
constexpr Bounds share{0.01, 1, "a part of 1"};

/// One object of the file, whose figures go to the machine's list as they are read.
class Section {
 public:
  Section(const json& file, const char* key, const std::string& name, Machine& machine)
      : where_(fmt::format("{}: \"{}\"", name, key)), key_(key), machine_(machine) {
    require(file.contains(key) && file[key].is_object(), "{} is missing; it has {}", where_,
            "figures of the machine, see app/README.md");
    object_ = file[key];
    basis_ = object_.value("basis", std::string("stated")) == "measured" ? Basis::measured
                                                                         : Basis::stated;
    if (object_.contains("source") && object_["source"].is_string()) source_ = object_["source"];
  }

  double needed(const char* key, const Bounds& bounds) {
    require(object_.contains(key), "{} lacks \"{}\", in {}", where_, key, bounds.unit);
    return figure(key, bounds);
  }
  double optional(const char* key, const Bounds& bounds, double otherwise) {
    if (!object_.contains(key) || object_[key].is_null()) return otherwise;
    return figure(key, bounds);
  }
  bool has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  const json& at(const char* key) const { return object_.at(key); }
  std::string text(const char* key, const std::string& otherwise) const {
    return object_.contains(key) && object_[key].is_string() ? object_[key].get<std::string>()
                                                             : otherwise;
  }
  const std::string& where() const { return where_; }
  /// Adds what was read otherwise to the machine's list.
  void tell(const std::string& name, double value) {
    machine_.figures.push_back({fmt::format("{} {}", key_, name), value, basis_, source_});
  }
  void allow(std::initializer_list<std::string_view> known) const {
    for (const auto& [key, ignored] : object_.items()) {
      const bool common = key == "source" || key == "basis";
      require(common || std::find(known.begin(), known.end(), key) != known.end(),
              "{} has \"{}\", which no machine has; it may have {}", where_, key,
              fmt::join(known, ", "));
    }
  }

 private:
  double figure(const char* key, const Bounds& bounds) {
    require(object_[key].is_number(), "{}: \"{}\" is {}, and must be a number of {}", where_, key,
            io::shown(object_[key]), bounds.unit);
    const double value = object_[key].get<double>();
    require(std::isfinite(value) && value >= bounds.least && value <= bounds.most,
            "{}: \"{}\" is {}, which no machine has; give {} from {} to {}", where_, key, value,
            bounds.unit, bounds.least, bounds.most);
    tell(key, value);
    return value;
  }

  std::string where_, key_;
  Machine& machine_;
  json object_;
  Basis basis_ = Basis::stated;
  std::string source_;
};

int count_of(const json& object, const char* key, int most, const std::string& where) {
  require(object.contains(key) && object[key].is_number_integer(), "{} lacks a number \"{}\"",
          where, key);
  const auto value = object[key].get<std::int64_t>();
  require(value >= 1 && value <= most, "{}: \"{}\" is {}; give 1 to {}", where, key, value, most);
  return static_cast<int>(value);
}

void read_ladders(const Section& section, Machine& machine) {
  if (!section.has("gemm")) return;
  for (const json& entry : section.at("gemm")) {
    GemmLadder ladder;
    require(entry.is_object() && entry.contains("depth") && entry.contains("columns") &&
                entry.contains("rows") && entry.contains("seconds") && entry["rows"].is_array() &&
                entry["seconds"].is_array() && entry["rows"].size() == entry["seconds"].size() &&
                !entry["rows"].empty(),
            "{}: \"gemm\" takes depth, columns, and as many rows as seconds", section.where());
    ladder.depth = entry["depth"].get<double>();
    ladder.columns = entry["columns"].get<double>();
    ladder.rows = entry["rows"].get<std::vector<double>>();
    ladder.seconds = entry["seconds"].get<std::vector<double>>();
    require(std::is_sorted(ladder.rows.begin(), ladder.rows.end()) && ladder.depth > 0 &&
                ladder.columns > 0 &&
                std::all_of(ladder.seconds.begin(), ladder.seconds.end(),
                            [](double s) { return std::isfinite(s) && s > 0; }),
            "{}: \"gemm\" has rows that do not rise, or seconds that are not above 0",
            section.where());
    machine.ladders.push_back(ladder);
  }
}

/// Rising numbers of `entry`, and as many of `values`, all above 0.
bool has_ladder(const json& entry, const char* points, const char* values) {
  const auto numbers = [&](const char* key) {
    return entry.contains(key) && entry[key].is_array() && !entry[key].empty() &&
           std::all_of(entry[key].begin(), entry[key].end(), [](const json& v) {
             return v.is_number() && std::isfinite(v.get<double>()) && v.get<double>() >= 0;
           });
  };
  if (!entry.is_object() || !numbers(points) || !numbers(values)) return false;
  const auto xs = entry[points].get<std::vector<double>>();
  const auto ys = entry[values].get<std::vector<double>>();
  return xs.size() == ys.size() &&
         std::adjacent_find(xs.begin(), xs.end(), std::greater_equal<>()) == xs.end() &&
         std::all_of(ys.begin(), ys.end(), [](double y) { return y > 0; });
}

/// Seconds of attention, as over what operations and reading would take at the machine's rates.
void read_attention(Section& section, Machine& machine) {
  if (!section.has("attention")) return;
  for (const json& entry : section.at("attention")) {
    require(
        has_ladder(entry, "contexts", "seconds"),
        "{}: \"attention\" takes tokens, heads, kv_heads, head_dim, and as many rising contexts "
        "as seconds above 0",
        section.where());
    const std::string where = section.where() + ": \"attention\"";
    const double tokens = count_of(entry, "tokens", 1 << 20, where);
    const double head = count_of(entry, "head_dim", 1 << 16, where);
    const double flops = 4 * tokens * count_of(entry, "heads", 1 << 16, where) * head;
    const double bytes = 4.0 * count_of(entry, "kv_heads", 1 << 16, where) * head;  // BF16
    AttentionLadder ladder;
    ladder.tokens = tokens;
    ladder.contexts = entry["contexts"].get<std::vector<double>>();
    const auto seconds = entry["seconds"].get<std::vector<double>>();
    for (std::size_t i = 0; i < seconds.size(); ++i) {
      const double bound =
          std::max(flops * (ladder.contexts[i] + (tokens + 1) / 2) / machine.flops_per_s,
                   bytes * (ladder.contexts[i] + tokens) / machine.bytes_per_s);
      ladder.over_bound.push_back(seconds[i] / bound);
      section.tell(
          fmt::format("attention of {} after {}, over its bound", tokens, ladder.contexts[i]),
          ladder.over_bound.back());
    }
    require(machine.attention.empty() || machine.attention.back().tokens < tokens,
            "{}: each of \"attention\" has more tokens than the one before", section.where());
    machine.attention.push_back(std::move(ladder));
  }
}

void read_experts(Section& section, Machine& machine) {
  if (!section.has("experts")) return;
  const json& entry = section.at("experts");
  require(has_ladder(entry, "busiest_over_mean", "over_products"),
          "{}: \"experts\" takes as many rising busiest_over_mean as over_products above 0",
          section.where());
  machine.experts.busiest_over_mean = entry["busiest_over_mean"].get<std::vector<double>>();
  machine.experts.over_products = entry["over_products"].get<std::vector<double>>();
  for (std::size_t i = 0; i < machine.experts.over_products.size(); ++i) {
    section.tell(fmt::format("experts whose busiest has {:.2f} of the mean, over their products",
                             machine.experts.busiest_over_mean[i]),
                 machine.experts.over_products[i]);
  }
}

void read_rank(const json& file, const std::string& name, Machine& machine) {
  Section arithmetic(file, "arithmetic", name, machine);
  arithmetic.allow({"peak_flops_per_s", "efficiency", "gemm", "attention", "experts"});
  machine.peak_flops_per_s = arithmetic.needed("peak_flops_per_s", operations);
  machine.flops_per_s = machine.peak_flops_per_s * arithmetic.optional("efficiency", share, 1);
  read_ladders(arithmetic, machine);
  Section memory(file, "memory", name, machine);
  memory.allow({"bytes", "bytes_per_s", "efficiency", "row_bytes_per_s"});
  machine.memory_bytes = memory.needed("bytes", memory_size);
  machine.peak_bytes_per_s = memory.needed("bytes_per_s", memory_rate);
  machine.bytes_per_s = machine.peak_bytes_per_s * memory.optional("efficiency", share, 1);
  machine.row_bytes_per_s = memory.optional("row_bytes_per_s", memory_rate, machine.bytes_per_s);
  read_attention(arithmetic, machine);  // over what both rates say
  read_experts(arithmetic, machine);
}

LinkRates read_rates(Section& section) {
  LinkRates rates;
  const double efficiency = section.optional("efficiency", share, 1);
  rates.rank_bytes_per_s = section.optional("rank_bytes_per_s", link_rate, 0) * efficiency;
  rates.node_bytes_per_s = section.optional("node_bytes_per_s", link_rate, 0) * efficiency;
  rates.pair_bytes_per_s = section.optional("pair_bytes_per_s", link_rate, 0) * efficiency;
  rates.latency_s = section.needed("latency_s", latency);
  rates.arithmetic_s_per_byte =
      section.optional("arithmetic_s_per_byte", {0, 1e-6, "seconds per byte"}, 0);
  require(rates.rank_bytes_per_s > 0 || rates.node_bytes_per_s > 0,
          "{} lacks \"rank_bytes_per_s\" or \"node_bytes_per_s\": what the port of a rank, or of "
          "a node, carries in each direction",
          section.where());
  return rates;
}

void read_fabric(Section& section, Machine& machine) {
  const std::string fabric = section.text("fabric", "tree");
  require(fabric == "tree" || fabric == "mesh" || fabric == "dragonfly",
          "{}: \"fabric\" is \"{}\"; choose one of tree, mesh, dragonfly", section.where(), fabric);
  machine.fabric = fabric == "tree"   ? Fabric::tree
                   : fabric == "mesh" ? Fabric::mesh
                                      : Fabric::dragonfly;
  if (section.has("rails")) machine.rails = section.at("rails").get<bool>();
  if (machine.fabric != Fabric::tree) {
    machine.link_bytes_per_s = section.needed("link_bytes_per_s", link_rate);
  }
  if (machine.fabric == Fabric::dragonfly) {
    require(section.has("nodes_of_group") && section.at("nodes_of_group").is_number_integer() &&
                section.at("nodes_of_group").get<int>() >= 1,
            "{} lacks \"nodes_of_group\", the nodes of a group", section.where());
    machine.nodes_of_group = section.at("nodes_of_group").get<int>();
  }
  if (!section.has("levels")) return;
  for (const json& entry : section.at("levels")) {
    LinkLevel level;
    require(entry.is_object(), "{}: \"levels\" has {}, which is no level", section.where(),
            io::shown(entry));
    level.name = entry.value("name", std::string("switch"));
    level.nodes = count_of(entry, "nodes", 1 << 20, section.where() + ": \"levels\"");
    level.oversubscription = entry.value("oversubscription", 1.0);
    require(level.oversubscription >= 1 && level.oversubscription <= 1000,
            "{}: \"oversubscription\" of {} is {}; give 1 to 1000", section.where(), level.name,
            level.oversubscription);
    require(machine.levels.empty() || level.nodes > machine.levels.back().nodes,
            "{}: each of \"levels\" has more nodes than the one before", section.where());
    machine.levels.push_back(level);
  }
}

void read_overheads(const json& file, const std::string& name, Machine& machine) {
  Section host(file, "host", name, machine);
  host.allow({"launch_s", "poll_s", "message_s", "agree_s", "eager_bytes"});
  constexpr Bounds delay{0, 1, "seconds"};
  machine.launch_s = host.needed("launch_s", delay);
  machine.poll_s = host.needed("poll_s", delay);
  machine.message_s = host.needed("message_s", delay);
  machine.agree_s = host.needed("agree_s", delay);
  machine.eager_bytes = host.optional("eager_bytes", {0, 1e9, "bytes"}, 0);
}

void read_speeds(const json& file, const std::string& name, Machine& machine) {
  if (!file.contains("speeds")) return;
  for (const json& entry : file["speeds"]) {
    const std::string where = name + ": \"speeds\"";
    require(entry.is_object() && entry.contains("rank") && entry["rank"].is_number_integer(),
            "{}: each takes a \"rank\", and \"arithmetic\" or \"link\" as a part of 1", where);
    RankSpeed speed;
    speed.first = entry["rank"].get<int>();
    speed.end = speed.first + entry.value("ranks", 1);
    speed.arithmetic = entry.value("arithmetic", 1.0);
    speed.link = entry.value("link", 1.0);
    require(speed.first >= 0 && speed.end <= machine.num_ranks(), "{}: there is no rank {}", where,
            speed.end - 1);
    require(speed.arithmetic > 0 && speed.arithmetic <= 10 && speed.link > 0 && speed.link <= 10,
            "{}: rank {} is {} and {} times as fast; give parts of 1", where, speed.first,
            speed.arithmetic, speed.link);
    machine.speeds.push_back(speed);
  }
}

/// "measured": {"at", "commit", "processor"}, of which the last says where its figures hold; empty
/// where it does not.
std::string processor_in(const json& file, const std::string& name) {
  if (!file.contains("measured")) return {};
  const json& measured = file["measured"];
  require(measured.is_object(),
          "{}: \"measured\" is no object of \"at\", \"commit\" and \"processor\"", name);
  require(!measured.empty(), "{}: \"measured\" says neither when nor where", name);
  if (!measured.contains("processor")) return {};
  require(measured["processor"].is_string(), "{}: \"measured\": \"processor\" is no text", name);
  return measured["processor"];
}

}  // namespace

Machine parse_machine(const std::string& text, const std::string& name) {
  io::require_shallow_json(text, name);
  const json file = json::parse(text, nullptr, /*allow_exceptions=*/false);
  require(file.is_object() && file.contains("format") && file["format"].is_string(),
          "{} is no machine (JSON with \"format\": \"{}\"); see perf/machines", name, format_name);
  require(file["format"] != "atoll-cluster",
          "{} says what links carry, and not what a rank computes; perf/calibrate measures both, "
          "and perf/machines has machines by their data sheets",
          name);
  require(file["format"] == format_name && file.value("format_version", 0) == 1,
          "{} is no machine of version 1 (\"format\": \"{}\"); see perf/machines", name,
          format_name);
  constexpr std::string_view known[] = {
      "format", "format_version", "name",          "about", "nodes",  "backend", "arithmetic",
      "memory", "inside_node",    "between_nodes", "host",  "speeds", "measured"};
  for (const auto& [key, ignored] : file.items()) {
    require(std::find(std::begin(known), std::end(known), key) != std::end(known),
            "{} has \"{}\", which no machine has; it may have {}", name, key,
            fmt::join(known, ", "));
  }
  Machine machine;
  machine.name = file.value("name", name);
  machine.processor = processor_in(file, name);
  const std::string backend = file.value("backend", std::string("cuda"));
  require(backend == "cuda" || backend == "cpu", "{}: \"backend\" is \"{}\"; choose cuda or cpu",
          name, backend);
  machine.cuda = backend == "cuda";
  require(file.contains("nodes") && file["nodes"].is_object(),
          "{} lacks \"nodes\": {{\"count\": 16, \"ranks\": 8}}", name);
  machine.num_nodes = count_of(file["nodes"], "count", 1 << 16, name + ": \"nodes\"");
  machine.ranks_of_node = count_of(file["nodes"], "ranks", 1 << 10, name + ": \"nodes\"");
  read_rank(file, name, machine);
  if (machine.ranks_of_node > 1) {
    Section inside(file, "inside_node", name, machine);
    inside.allow({"rank_bytes_per_s", "node_bytes_per_s", "pair_bytes_per_s", "efficiency",
                  "latency_s", "arithmetic_s_per_byte"});
    machine.inside = read_rates(inside);
  }
  if (machine.num_nodes > 1) {
    Section between(file, "between_nodes", name, machine);
    between.allow({"rank_bytes_per_s", "node_bytes_per_s", "pair_bytes_per_s", "efficiency",
                   "latency_s", "arithmetic_s_per_byte", "fabric", "rails", "levels",
                   "link_bytes_per_s", "nodes_of_group"});
    machine.between = read_rates(between);
    read_fabric(between, machine);
  }
  read_overheads(file, name, machine);
  read_speeds(file, name, machine);
  return machine;
}

void require_own(const Machine& machine, const std::string& path, bool foreign) {
  if (foreign || machine.processor.empty()) return;
  const std::string own = processor_name();
  require(machine.processor == own,
          "{} was measured on {}, and this is {}; measure here with perf/calibrate, or give "
          "--foreign-machine to plan with those figures all the same",
          path, machine.processor, own);
}

Machine read_machine(const std::string& path) {
  std::error_code ignored;
  require(std::filesystem::is_regular_file(path, ignored),
          "{} is no file; check --cluster (perf/machines has some)", path);
  require(std::filesystem::file_size(path, ignored) < (std::uintmax_t{16} << 20),
          "{} is too large for a machine; check --cluster", path);
  std::ifstream stream(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  return parse_machine(text, path);
}

}  // namespace atl
