#pragma once
// What a simulator keeps of its ranks and exchanges.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "app/plan/simulator.hpp"
#include "compute/error.hpp"

namespace atl {

/// Whether an exchange brings rows to experts, or back.
inline bool moves_rows(StepKind kind) {
  switch (kind) {
    case StepKind::dispatch:
    case StepKind::combine:
    case StepKind::across_dispatch:
    case StepKind::across_combine:
      return true;
    default:
      return false;
  }
}

struct Simulator::Rank {
  int rank = 0;   // in the job
  int index = 0;  // among those that run
  int stage = 0;
  double host_free = 0, queue_end = 0;
  double computed_s = 0;  // of arithmetic that has ended
  double owed_s = 0;      // that messages took of arithmetic, and the next to begin will pay
  bool agreeing = false;
  double came = 0;  // to the agreement
  std::int32_t turn = 0;
  struct Pass {
    std::int32_t pass = 0;
    ReadySteps* steps = nullptr;
  };
  std::vector<Pass> under_way;  // the oldest first
  // One for each flight and schedule.
  std::vector<std::pair<std::pair<int, const Schedule*>, std::unique_ptr<ReadySteps>>> steps;
  std::vector<Running> computing, exchanging;
  TimeSweep sweep;

  /// Seconds of arithmetic until now.
  double computed_until(double now) const {
    double seconds = computed_s;
    for (const Running& running : computing) {
      seconds += std::max(0.0, std::min(running.end, now) - running.begin);
    }
    return seconds;
  }
  ReadySteps& steps_of(int flight, const Schedule* schedule) {
    for (auto& [key, ready] : steps) {
      if (key == std::pair(flight, schedule)) return *ready;
    }
    steps.emplace_back(std::pair(flight, schedule), std::make_unique<ReadySteps>(*schedule));
    return *steps.back().second;
  }
  ReadySteps& steps_of(std::int32_t pass) {
    for (const Pass& p : under_way) {
      if (p.pass == pass) return *p.steps;
    }
    fail("internal: rank {} is not in pass {}", rank, pass);
  }
};

struct Simulator::Exchange {
  struct Flow {
    LinkPath path;
    double bytes = 0;
    double begin = 0;
    std::int32_t missing = 0;  // messages that cannot begin yet
    std::vector<std::int32_t> messages;
  };
  Share share{};
  std::int32_t group = 0, pass = 0;
  StepKind kind{};
  Step step;  // alike for all members
  std::uint64_t key = 0;
  const std::vector<int>* ranks = nullptr;  // members, in the job
  std::vector<Message> messages;
  std::vector<std::int32_t> flow_of;  // [messages]; -1: too small for one
  // [messages]: what sender and receiver had computed when it began, where that matters.
  std::vector<std::pair<double, double>> computed;
  std::vector<Flow> flows;
  std::vector<std::vector<std::int32_t>> touching;  // [members], messages
  std::vector<double> posted, ready, done;          // [members]; -1: not yet
  std::vector<std::int32_t> pending;                // [members], messages
  int members = 0, num_posted = 0, num_ended = 0;
  double last_post = 0, last_done = 0;
  int last_place = 0;
};

}  // namespace atl
