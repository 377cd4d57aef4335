#include "app/run/plan_page.hpp"

#include <fmt/format.h>

#include "app/run/dag_files.hpp"
#include "app/run/plan_pictures.hpp"
#include "app/run/plan_text.hpp"

namespace atl {

namespace {

constexpr const char* style =
    "body{font-family:Helvetica,Arial,sans-serif;margin:0 auto;max-width:1240px;padding:12px 16px;"
    "color:#222;line-height:1.4}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:1.6em}"
    ".answer{display:flex;flex-wrap:wrap;gap:12px}.answer div{background:#eef4fb;border-radius:6px;"
    "padding:8px 14px}.answer b{display:block;font-size:1.3em}.wide{overflow-x:auto}"
    ".wide svg{max-width:none}svg{max-width:100%;height:auto}.wide svg{height:revert-layer}"
    "table{border-collapse:collapse;font-size:.9em}td,th{padding:3px 10px;text-align:right;"
    "border-bottom:1px solid #ddd;white-space:nowrap}td:first-child,th:first-child,td:last-child,"
    "th:last-child{text-align:left}pre{white-space:pre;overflow-x:auto;background:#f6f6f6;"
    "padding:8px;font-size:.8em}";

std::string number(const std::string& figure, const std::string& what) {
  return fmt::format("<div><b>{}</b>{}</div>\n", xml_text(figure), xml_text(what));
}

std::string answer(const PlanInput& input, const PlannedLayout& layout) {
  std::string html = "<div class=\"answer\">\n";
  html += number(layout_name(layout.division, input.ranks), "layout");
  const auto rate = [&](Phase phase, const char* name) {
    const PlannedPhase& p = layout.of(phase);
    if (p.passes == 0) return;
    const double tokens =
        static_cast<double>(phase == Phase::prefill ? p.prompt_tokens : p.new_tokens);
    html += number(fmt::format("{:.0f} tokens/s", tokens / p.seconds), name);
  };
  rate(Phase::prefill, "prefill");
  rate(Phase::decode, "decode");
  html += number(fmt::format("{:.0f} ms", layout.ttft_median_s * 1e3), "TTFT, median");
  if (layout.tpot_median_s > 0) {
    html += number(fmt::format("{:.2f} ms", layout.tpot_median_s * 1e3), "TPOT, median");
  }
  html += number(fmt::format("{:.1f} s", layout.seconds), "the whole job");
  return html + "</div>\n";
}

std::string ranking(const PlanInput& input, const RankedLayouts& ranked) {
  std::string html =
      "<h2>Layouts by rank</h2><div class=\"wide\"><table><tr><th>layout</th><th>tokens/s</th>"
      "<th>seconds</th><th>TPOT ms</th><th>limited by</th></tr>\n";
  constexpr std::size_t shown = 12;
  std::size_t number = 0;
  for (const PlannedLayout& layout : ranked.fitting) {
    if (number++ == shown) {
      html += "</table></div><details><summary>the others</summary><div class=\"wide\"><table>\n";
    }
    const bool decode = layout.of(Phase::decode).seconds > layout.of(Phase::prefill).seconds;
    html += fmt::format(
        "<tr><td>{}</td><td>{:.0f}</td><td>{:.2f}</td><td>{:.3f}</td><td>{}</td></tr>\n",
        layout_name(layout.division, input.ranks), layout.tokens_per_s(), layout.seconds,
        layout.tpot_median_s * 1e3,
        xml_text(limit_of(layout.of(decode ? Phase::decode : Phase::prefill))));
  }
  html += "</table></div>";
  if (number > shown) html += "</details>";
  return html + fmt::format("<p>{} more do not fit.</p>\n", ranked.too_large.size());
}

}  // namespace

std::string plan_page(const PlanInput& input, const PlannedLayout& layout,
                      const RankedLayouts* ranked, const std::string& drawing) {
  const bool decodes = layout.of(Phase::decode).passes > 0;
  const PlannedPhase& phase = layout.of(decodes ? Phase::decode : Phase::prefill);
  const char* name = decodes ? "decode" : "prefill";
  std::string html = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>Plan: {}</title>\n<style>{}</style></head><body>\n<h1>{}</h1>\n",
      xml_text(input.work.name), style, xml_text(input_text(input)));
  html += answer(input, layout);
  html += fmt::format("<pre>{}</pre>\n", xml_text(layout_answer(input, layout)));
  html +=
      "<h2>Who is with whom</h2><p>Each box is a GPU: network.stage.place among those that "
      "exchange experts' rows. One colour: they share attention and its sequences.</p>\n"
      "<div class=\"wide\">" +
      layout_picture(input, layout) + "</div>\n";
  html += "<h2>Memory of the GPU that takes most</h2><div class=\"wide\">" +
          memory_picture(input, layout) + "</div>\n";
  html += fmt::format("<h2>Bytes of one pass ({})</h2><div>{}</div>\n", name,
                      heat_picture(phase, input.ranks));
  html += fmt::format(
      "<h2>One pass in time ({})</h2><p>Blue: arithmetic; below it, in orange: exchanges, from "
      "posting to end.</p>\n<div class=\"wide\">{}</div>\n",
      name, timeline_picture(layout, phase));
  if (ranked != nullptr) html += ranking(input, *ranked);
  html += "<h2>The deployment, folded</h2><div class=\"wide\">" + drawing + "</div>\n";
  return html + "</body></html>\n";
}

}  // namespace atl
