#include "app/run/plan_pictures.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "app/run/memory_fit.hpp"
#include "app/run/rank_sizes.hpp"

namespace atl {

namespace {

constexpr std::array<const char*, 8> colours = {"#7aa6d6", "#e6b35a", "#7fbf7f", "#d98880",
                                                "#b39ddb", "#80cbc4", "#f0a5c0", "#bcaaa4"};

std::string opened(double width, double height) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"Helvetica,Arial,sans-serif\" font-size=\"11\">\n",
      width, height);
}

std::string box(double x, double y, double width, double height, const std::string& colour,
                const std::string& title) {
  return fmt::format(
      "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\">"
      "<title>{}</title></rect>\n",
      x, y, width, height, colour, title);
}

std::string text_at(double x, double y, const std::string& text, const char* anchor = "start") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\">{}</text>\n", x, y, anchor,
                     text);
}

std::string seconds_text(double seconds) {
  return seconds < 1e-3 ? fmt::format("{:.0f} us", seconds * 1e6)
                        : fmt::format("{:.2f} ms", seconds * 1e3);
}

const char* colour_of(StepKind kind) {
  if (is_exchange(kind)) return "#e6b35a";
  switch (kind) {
    case StepKind::experts:
    case StepKind::up:
    case StepKind::down:
      return "#3b6ea8";
    case StepKind::mlp:
      return "#7fbf7f";
    case StepKind::head:
    case StepKind::embed:
      return "#b39ddb";
    default:
      return "#7aa6d6";
  }
}

/// One picture's window in time.
struct Window {
  double from = 0, to = 0;
  std::string title;
};

std::string timeline_rows(const PlannedLayout& layout, const PlannedPhase& phase,
                          const Window& window, const std::vector<int>& ranks, double top) {
  constexpr double left = 70, width = 1110, row = 16;
  const double scale = width / (window.to - window.from);
  std::string svg = text_at(left, top, window.title);
  double y = top + 8;
  for (const int rank : ranks) {
    svg += text_at(left - 8, y + row, fmt::format("GPU {}", rank), "end");
    const int stage = layout.pricer->groups().job().stage_of(rank);
    const Schedule schedule = layout.pricer->schedule(stage, phase.chunks, phase.form);
    for (const SimulatedStep& step : phase.price.steps) {
      if (step.rank != rank || step.end < window.from || step.begin > window.to) continue;
      const Step& of = schedule.steps[static_cast<std::size_t>(step.step)];
      const double begin = std::max(step.begin, window.from), end = std::min(step.end, window.to);
      const double w = (end - begin) * scale;
      if (w < 0.3) continue;
      const bool message = is_exchange(of.kind);
      const double at = y + (message ? row + 1 : 0);
      const double height = message ? row / 2 : row;
      svg += box(left + (begin - window.from) * scale, at, w, height, colour_of(of.kind),
                 fmt::format("{} {}", of.name(), seconds_text(step.end - step.begin)));
      if (w > 60) {
        svg += text_at(left + (begin - window.from) * scale + 3, at + height - 3, of.name());
      }
    }
    y += 1.5 * row + 10;
  }
  return svg;
}

}  // namespace

std::string layout_picture(const PlanInput& input, const PlannedLayout& layout) {
  const JobLayout& job = layout.pricer->groups().job();
  constexpr double left = 60, cell = 46, row = 24;
  const int per_node = input.machine.ranks_of_node;
  const int nodes = job.num_nodes();
  const bool wide = per_node <= 16;
  const double width = left + per_node * (wide ? cell : 14.0) + 20;
  std::string svg = opened(width, 20 + nodes * row);
  for (int rank = 0; rank < job.num_ranks(); ++rank) {
    const int node = job.node_of(rank), place = rank % per_node;
    const int network = job.of(Share::network).group_of[static_cast<std::size_t>(rank)];
    const int owner = job.of(Share::owner).group_of[static_cast<std::size_t>(rank)];
    const double w = wide ? cell : 14;
    svg += box(left + place * w, 10 + node * row, w - 2, row - 3,
               colours[static_cast<std::size_t>(owner) % colours.size()],
               fmt::format("GPU {}: network {}, stage {}, attention group {}, expert place {}",
                           rank, network, job.stage_of(rank), owner,
                           job.of(Share::exchange).place_of[static_cast<std::size_t>(rank)]));
    if (wide) {
      svg += text_at(left + place * w + w / 2 - 1, 10 + node * row + 15,
                     fmt::format("{}.{}.{}", network, job.stage_of(rank),
                                 job.of(Share::exchange).place_of[static_cast<std::size_t>(rank)]),
                     "middle");
    }
  }
  for (int node = 0; node < nodes; ++node) {
    svg += text_at(left - 6, 10 + node * row + 15, fmt::format("node {}", node), "end");
  }
  return svg + "</svg>\n";
}

std::string memory_picture(const PlanInput& input, const PlannedLayout& layout) {
  constexpr double left = 70, width = 900, row = 40;
  std::string svg =
      opened(left + width + 40, 30 + row * static_cast<double>(layout.memory.stages.size()));
  const double scale = width / input.machine.memory_bytes;
  double y = 10;
  for (const StageMemory& stage : layout.memory.stages) {
    svg += text_at(left - 8, y + 17, fmt::format("stage {}", stage.stage), "end");
    double x = left;
    std::size_t colour = 0;
    std::vector<std::pair<std::string, std::int64_t>> parts = stage.weights;
    std::int64_t named = 0;
    for (const auto& [kind, bytes] : parts) named += bytes;
    if (stage.plan.weights > named) parts.emplace_back("padding", stage.plan.weights - named);
    parts.emplace_back("KV cache", stage.plan.kv_cache * layout.memory.pages);
    parts.emplace_back("workspace", stage.plan.workspace);
    parts.emplace_back("chunks", stage.plan.chunks);
    parts.emplace_back("received rows", stage.plan.received);
    for (const auto& [kind, bytes] : parts) {
      const double w = static_cast<double>(bytes) * scale;
      svg += box(x, y, w, 26, colours[colour++ % colours.size()],
                 fmt::format("{}: {}", kind, gigabytes(bytes)));
      if (w > 7.0 * static_cast<double>(kind.size())) svg += text_at(x + 4, y + 17, kind);
      x += w;
    }
    svg += fmt::format(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"26\" fill=\"none\" stroke=\"#555\"/>\n",
        left, y, width);
    y += row;
  }
  svg += text_at(left + width, y + 4,
                 gigabytes(static_cast<std::int64_t>(input.machine.memory_bytes)), "end");
  return svg + "</svg>\n";
}

std::string heat_picture(const PlannedPhase& phase, int num_ranks) {
  // More than so many ranks are added up, so that the picture stays one.
  constexpr int most = 256;
  const int fold = (num_ranks + most - 1) / most;
  const int n = (num_ranks + fold - 1) / fold;
  std::vector<double> sums(static_cast<std::size_t>(n) * static_cast<std::size_t>(n));
  for (int a = 0; a < num_ranks; ++a) {
    for (int b = 0; b < num_ranks; ++b) {
      const auto at = static_cast<std::size_t>(a / fold) * static_cast<std::size_t>(n) +
                      static_cast<std::size_t>(b / fold);
      sums[at] +=
          phase.price.bytes[static_cast<std::size_t>(a) * static_cast<std::size_t>(num_ranks) +
                            static_cast<std::size_t>(b)];
    }
  }
  const double largest = *std::max_element(sums.begin(), sums.end());
  constexpr int levels = 8;
  std::array<std::string, levels> paths;
  for (int a = 0; a < n; ++a) {
    for (int b = 0; b < n; ++b) {
      const double v = sums[static_cast<std::size_t>(a * n + b)];
      if (v <= 0) continue;
      const auto level =
          static_cast<std::size_t>(std::min<double>(levels - 1, v / largest * levels));
      paths[level] += fmt::format("M{} {}h1v1h-1z", b, a);
    }
  }
  constexpr std::array<const char*, levels> shades = {"#eef4fb", "#d5e5f5", "#b5d2ee", "#8fb8e0",
                                                      "#659bcf", "#3f7cb8", "#255f9b", "#103f72"};
  constexpr double side = 512, left = 40;
  std::string svg = opened(left + side + 20, side + 50);
  svg += text_at(left, 12,
                 fmt::format("from GPU (row) to GPU (column); darkest: {}",
                             gigabytes(static_cast<std::int64_t>(largest))));
  svg += fmt::format(
      "<g transform=\"translate({} 20) scale({:.4f})\"><rect width=\"{}\" height=\"{}\" "
      "fill=\"#fafafa\"/>\n",
      left, side / n, n, n);
  for (std::size_t l = 0; l < paths.size(); ++l) {
    if (!paths[l].empty())
      svg += fmt::format("<path fill=\"{}\" d=\"{}\"/>\n", shades[l], paths[l]);
  }
  svg += "</g>\n";
  svg += text_at(left - 4, 30, "0", "end");
  svg += text_at(left - 4, side + 20, std::to_string(num_ranks - 1), "end");
  return svg + "</svg>\n";
}

std::string timeline_picture(const PlannedLayout& layout, const PlannedPhase& phase) {
  if (phase.price.steps.empty()) return "";
  double begin = phase.price.steps.front().begin, end = 0;
  for (const SimulatedStep& step : phase.price.steps) {
    begin = std::min(begin, step.begin);
    end = std::max(end, step.end);
  }
  // The first, the one that others waited for most, and one between them; of each stage the first.
  const auto& waited = phase.price.waited_for;
  const int late =
      static_cast<int>(std::max_element(waited.begin(), waited.end()) - waited.begin());
  std::vector<int> ranks = {0};
  const JobLayout& job = layout.pricer->groups().job();
  for (int stage = 1; stage < job.division().pp; ++stage) {
    ranks.push_back(stage * job.ranks_of_stage());
  }
  if (std::find(ranks.begin(), ranks.end(), late) == ranks.end()) ranks.push_back(late);
  const int other = job.ranks_of_stage() / 2;
  if (std::find(ranks.begin(), ranks.end(), other) == ranks.end()) ranks.push_back(other);
  const double rows = static_cast<double>(ranks.size()) * 34 + 30;
  const double middle = (begin + end) / 2, part = (end - begin) / 40;
  std::string svg = opened(1200, 2 * rows + 30);
  svg += timeline_rows(layout, phase,
                       {begin, end, fmt::format("the whole: {}", seconds_text(end - begin))}, ranks,
                       14);
  svg += timeline_rows(
      layout, phase,
      {middle - part, middle + part, fmt::format("its middle: {}", seconds_text(2 * part))}, ranks,
      rows + 24);
  return svg + "</svg>\n";
}

}  // namespace atl
