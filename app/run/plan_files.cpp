#include "app/run/plan_files.hpp"

#include "app/plan/dag.hpp"
#include "app/run/dag_files.hpp"
#include "app/run/plan_page.hpp"
#include "app/run/timeline.hpp"
#include "io/text_file.hpp"
#include "io/trace.hpp"

namespace atl {

void write_text(const std::filesystem::path& path, const std::string& text) {
  io::TextFile file(path.string());
  file.write(text);
  file.close();
}

void write_drawings(const std::filesystem::path& folder, const PlanInput& input,
                    const PlannedLayout& layout, const RankedLayouts* ranked,
                    const PlanGraph& graph) {
  const auto write = [&](const Dag& dag, const Dag& drawn) {
    write_text(folder / (dag.name + ".dot"), dot_text(dag));
    write_text(folder / (dag.name + ".svg"), svg_text(drawn));
  };
  const Dag complete = complete_deployment_dag(graph);
  const Dag folded = folded_deployment_dag(graph);
  write(complete, folded);
  write_text(folder / (complete.name + ".graphml"), graphml_text(complete));
  for (const Dag& dag :
       {comprehensive_moe_dag(graph), simplified_moe_dag(graph), detailed_expert_dag(graph)}) {
    write(dag, dag);
  }
  write_text(folder / "plan.html", plan_page(input, layout, ranked, svg_text(folded)));
}

void write_predicted_trace(const std::filesystem::path& path, const PlannedLayout& layout,
                           const PlannedPhase& phase) {
  const JobLayout& job = layout.pricer->groups().job();
  std::vector<Schedule> schedules;
  for (int stage = 0; stage < job.division().pp; ++stage) {
    schedules.push_back(layout.pricer->schedule(stage, phase.chunks, phase.form));
  }
  std::vector<std::vector<io::TraceEvent>> events(static_cast<std::size_t>(job.num_ranks()));
  for (const SimulatedStep& step : phase.price.steps) {
    const Step& of = schedules[static_cast<std::size_t>(job.stage_of(step.rank))]
                         .steps[static_cast<std::size_t>(step.step)];
    io::TraceEvent event;
    event.kind = static_cast<std::uint8_t>(of.kind);
    event.layer = of.layer;
    event.chunk = of.chunk;
    event.begin = step.begin;
    event.end = step.end;
    events[static_cast<std::size_t>(step.rank)].push_back(event);
  }
  const auto step_of = [](const io::TraceEvent& event) {
    return Step{static_cast<StepKind>(event.kind), event.layer, event.chunk, {}};
  };
  io::write_trace(
      path.string(), events, [&](const io::TraceEvent& event) { return step_of(event).name(); },
      [&](const io::TraceEvent& event) { return lane_of(step_of(event).kind); });
}

}  // namespace atl
