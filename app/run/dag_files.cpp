#include "app/run/dag_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <vector>

namespace atl {

namespace {

std::string dot_string(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

/// Where each node stands: in which layer, and which of the layer's.
struct Places {
  std::vector<int> layer, order;
  int num_layers = 0;
  int widest = 1;
};

/// The longest way to each node decides its layer. Dependencies lead forwards in the list, but for
/// messages between ranks, which are looked at until nothing changes.
Places places_of(const Dag& dag) {
  Places places{std::vector<int>(dag.nodes.size()), std::vector<int>(dag.nodes.size())};
  for (std::size_t round = 0; round <= dag.nodes.size(); ++round) {
    bool changed = false;
    for (const DagEdge& edge : dag.edges) {
      int& to = places.layer[static_cast<std::size_t>(edge.to)];
      const int wanted = places.layer[static_cast<std::size_t>(edge.from)] + 1;
      if (to >= wanted) continue;
      to = wanted;
      changed = true;
    }
    if (!changed) break;
  }
  for (const int layer : places.layer) places.num_layers = std::max(places.num_layers, layer + 1);
  std::vector<int> count(static_cast<std::size_t>(places.num_layers));
  for (std::size_t i = 0; i < dag.nodes.size(); ++i) {
    places.order[i] = count[static_cast<std::size_t>(places.layer[i])]++;
  }
  for (const int n : count) places.widest = std::max(places.widest, n);
  return places;
}

constexpr double line_height = 15, box_gap = 26, column_gap = 44, margin = 20;
constexpr double label_room = 60;         // between layers whose edges say something
constexpr std::size_t most_labels = 200;  // more would hide one another
constexpr double letter = 6.6;

struct Sheet {
  Places places;
  double box_width = 160, box_height = 0, layer_gap = box_gap;
  int layers_of_column = 0;
  double width = 0, height = 0;

  double x(std::size_t node) const {
    const int column = places.layer[node] / layers_of_column;
    return margin + column * (places.widest * (box_width + box_gap) + column_gap) +
           places.order[node] * (box_width + box_gap);
  }
  double y(std::size_t node) const {
    return margin + 28 + (places.layer[node] % layers_of_column) * (box_height + layer_gap);
  }
};

Sheet sheet_of(const Dag& dag) {
  Sheet sheet;
  sheet.places = places_of(dag);
  std::size_t longest = 12, lines = 1;
  for (const DagNode& node : dag.nodes) {
    lines = std::max(lines, node.lines.size());
    for (const std::string& line : node.lines) longest = std::max(longest, line.size());
  }
  sheet.box_width = letter * static_cast<double>(longest) + 16;
  sheet.box_height = line_height * static_cast<double>(lines) + 12;
  // A sheet about as wide as high.
  const double group = sheet.places.widest * (sheet.box_width + box_gap) + column_gap;
  const bool labels = dag.edges.size() <= most_labels &&
                      std::any_of(dag.edges.begin(), dag.edges.end(),
                                  [](const DagEdge& edge) { return !edge.label.empty(); });
  if (labels) sheet.layer_gap = box_gap + label_room;
  const double height = sheet.box_height + sheet.layer_gap;
  const int columns = std::max(
      1, static_cast<int>(std::round(std::sqrt(sheet.places.num_layers * height * 1.4 / group))));
  sheet.layers_of_column = std::max(1, (sheet.places.num_layers + columns - 1) / columns);
  const int used = (sheet.places.num_layers + sheet.layers_of_column - 1) / sheet.layers_of_column;
  sheet.width = 2 * margin + used * group - column_gap - box_gap;
  const int rows = std::min(sheet.places.num_layers, sheet.layers_of_column);
  sheet.height = 2 * margin + 28 + rows * height - sheet.layer_gap;
  return sheet;
}

void add_edge(const Dag& dag, const Sheet& sheet, const DagEdge& edge, std::string& svg) {
  const auto from = static_cast<std::size_t>(edge.from), to = static_cast<std::size_t>(edge.to);
  const double x0 = sheet.x(from) + sheet.box_width / 2, y0 = sheet.y(from) + sheet.box_height;
  const double x1 = sheet.x(to) + sheet.box_width / 2, y1 = sheet.y(to);
  if (y1 < y0) {  // the next column
    const double right = sheet.x(from) + sheet.box_width, left = sheet.x(to);
    const double a = y0 - sheet.box_height / 2, b = y1 + sheet.box_height / 2;
    const double middle = (right + left) / 2;
    svg += fmt::format(
        "<path class=\"{}\" d=\"M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}\"/>\n",
        edge.communication ? "m" : "d", right, a, middle, a, middle, b, left - 3, b);
    return;
  }
  const double bend = (y1 - y0) / 2;
  svg += fmt::format(
      "<path class=\"{}\" d=\"M{:.1f} {:.1f}C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}\"/>\n",
      edge.communication ? "m" : "d", x0, y0, x0, y0 + bend, x1, y1 - bend, x1, y1 - 3);
  if (edge.label.empty() || dag.edges.size() > most_labels) return;
  svg += fmt::format("<text class=\"l\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", (x0 + 3 * x1) / 4,
                     (y0 + 3 * y1) / 4, xml_text(edge.label));
}

}  // namespace

std::string xml_text(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string dot_text(const Dag& dag) {
  std::string text = fmt::format(
      "digraph {} {{\n  label={};\n  labelloc=t;\n  node [shape=box, fontname=\"Helvetica\"];\n",
      dag.name, dot_string(dag.title));
  const auto out = std::back_inserter(text);
  for (const DagNode& node : dag.nodes) {
    fmt::format_to(out, "  {} [label={}{}];\n", dot_string(node.id),
                   dot_string(fmt::format("{}", fmt::join(node.lines, "\n"))),
                   node.communication ? ", style=\"rounded,dashed\"" : "");
  }
  for (const DagEdge& edge : dag.edges) {
    const auto id = [&](std::int32_t node) {
      return dot_string(dag.nodes[static_cast<std::size_t>(node)].id);
    };
    fmt::format_to(out, "  {} -> {}", id(edge.from), id(edge.to));
    if (edge.communication && edge.label.empty()) {
      text += " [style=dashed]";
    } else if (edge.communication) {
      fmt::format_to(out, " [style=dashed, label={}]", dot_string(edge.label));
    }
    text += ";\n";
  }
  return text + "}\n";
}

std::string graphml_text(const Dag& dag) {
  std::string text =
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<graphml xmlns=\"http://graphml.graphdrawing.org/xmlns\">\n"
      "<key id=\"label\" for=\"node\" attr.name=\"label\" attr.type=\"string\"/>\n"
      "<key id=\"kind\" for=\"all\" attr.name=\"kind\" attr.type=\"string\"/>\n"
      "<key id=\"bytes\" for=\"edge\" attr.name=\"label\" attr.type=\"string\"/>\n";
  const auto out = std::back_inserter(text);
  fmt::format_to(out, "<graph id=\"{}\" edgedefault=\"directed\">\n", dag.name);
  const auto kind = [](bool communication) { return communication ? "communication" : "compute"; };
  for (const DagNode& node : dag.nodes) {
    fmt::format_to(out,
                   "<node id=\"{}\"><data key=\"label\">{}</data><data key=\"kind\">{}</data>"
                   "</node>\n",
                   xml_text(node.id), xml_text(fmt::format("{}", fmt::join(node.lines, "\n"))),
                   kind(node.communication));
  }
  for (const DagEdge& edge : dag.edges) {
    fmt::format_to(out, "<edge source=\"{}\" target=\"{}\"><data key=\"kind\">{}</data>",
                   xml_text(dag.nodes[static_cast<std::size_t>(edge.from)].id),
                   xml_text(dag.nodes[static_cast<std::size_t>(edge.to)].id),
                   kind(edge.communication));
    if (!edge.label.empty()) {
      fmt::format_to(out, "<data key=\"bytes\">{}</data>", xml_text(edge.label));
    }
    text += "</edge>\n";
  }
  return text + "</graph>\n</graphml>\n";
}

std::string svg_text(const Dag& dag) {
  const Sheet sheet = sheet_of(dag);
  const double width =
      std::max(sheet.width, letter * 1.1 * static_cast<double>(dag.title.size()) + 2 * margin);
  std::string svg = fmt::format(
      "<svg class=\"dag\" xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"Helvetica,Arial,sans-serif\" "
      "font-size=\"11\">\n"
      "<style>.dag .c{{fill:#e8f0fb;stroke:#3b6ea8}}.dag .x{{fill:#fff6e5;stroke:#b7791f;"
      "stroke-dasharray:5 3}}.dag .d{{fill:none;stroke:#555;marker-end:url(#a)}}"
      ".dag .m{{fill:none;stroke:#b7791f;stroke-dasharray:5 3;marker-end:url(#a)}}"
      ".dag .l{{fill:#7a4d08;text-anchor:middle}}.dag .h{{font-weight:bold}}</style>\n"
      "<defs><marker id=\"a\" viewBox=\"0 0 6 6\" refX=\"5\" refY=\"3\" markerWidth=\"6\" "
      "markerHeight=\"6\" orient=\"auto\"><path d=\"M0 0L6 3L0 6z\" fill=\"#555\"/></marker>"
      "</defs>\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{2:.0f}\" y=\"{3:.0f}\" font-size=\"14\" class=\"h\">{4}</text>\n",
      width, sheet.height, margin, margin + 8, xml_text(dag.title));
  for (const DagEdge& edge : dag.edges) add_edge(dag, sheet, edge, svg);
  for (std::size_t i = 0; i < dag.nodes.size(); ++i) {
    const DagNode& node = dag.nodes[i];
    svg += fmt::format(
        "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
        "rx=\"4\"/>\n",
        node.communication ? "x" : "c", sheet.x(i), sheet.y(i), sheet.box_width, sheet.box_height);
    for (std::size_t l = 0; l < node.lines.size(); ++l) {
      svg +=
          fmt::format("<text{} x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", l == 0 ? " class=\"h\"" : "",
                      sheet.x(i) + 8, sheet.y(i) + line_height * static_cast<double>(l + 1),
                      xml_text(node.lines[l]));
    }
  }
  return svg + "</svg>\n";
}

}  // namespace atl
