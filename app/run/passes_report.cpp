// What passes leave: files that are closed, and what the report says of them.

#include <fmt/format.h>

#include <cstdio>
#include <span>

#include "app/run/passes.hpp"
#include "app/run/prefix_report.hpp"
#include "app/run/speculation.hpp"

namespace atl {

nlohmann::json Passes::balance_report() const {
  nlohmann::json report = watch_.report();
  if (gate_) report["bias"] = gate_->report();
  balancing_->report_to(report);
  return report;
}

void Passes::close_dump() {
  if (dump_) dump_->close();
}

void Passes::close_record() {
  if (record_) record_->close();
}

nlohmann::json Passes::prefix_report() const {
  return gather_prefix_report(in_.world, in_.options, speaks_, pages_->counts());
}

nlohmann::json Passes::speculation_report() const {
  SpeculationCounts counts;
  for (const auto& batcher : batchers_) {
    counts.alone += batcher->speculation().alone;
    counts.proposed += batcher->speculation().proposed;
    counts.accepted += batcher->speculation().accepted;
  }
  return gather_speculation_report(in_.world, in_.options, speaks_, counts);
}

nlohmann::json Passes::routing_report() const {
  nlohmann::json report;
  if (record_) {
    const RecordCost& cost = record_->cost();
    std::int64_t sums[] = {cost.rows, cost.bytes};
    in_.world.allreduce(std::span(sums), comm::Communicator::Reduce::sum);
    double seconds = cost.seconds;
    in_.world.allreduce(std::span(&seconds, 1), comm::Communicator::Reduce::max);
    report["recorded"] = {{"file", in_.work.written(in_.options.record_routing)},
                          {"positions", sums[0]},
                          {"bytes", sums[1]},
                          {"seconds", seconds}};
  }
  if (in_.replay != nullptr) report["replayed"] = in_.replay->report();
  return root() ? report : nlohmann::json();
}

std::vector<std::vector<io::TraceEvent>> Passes::gather_trace() const {
  if (in_.options.trace.empty()) return {};
  return in_.world.gather_vectors(std::span(timeline_->trace()), 0);
}

void Passes::write_trace(const std::vector<std::vector<io::TraceEvent>>& events) const {
  if (in_.options.trace.empty()) return;
  const auto step_of = [](const io::TraceEvent& event) {
    return Step{static_cast<StepKind>(event.kind), event.layer, event.chunk, {}};
  };
  io::write_trace(
      in_.options.trace, events, [&](const io::TraceEvent& e) { return step_of(e).name(); },
      [&](const io::TraceEvent& e) { return lane_of(step_of(e).kind); },
      in_.backend.stream_names());
  if (timeline_->dropped_trace_events() > 0) {
    fmt::print(stderr,
               "the trace keeps the first {} steps of each rank; {} later ones on rank 0 "
               "are not in it\n",
               timeline_->trace().size(), timeline_->dropped_trace_events());
  }
}

}  // namespace atl
