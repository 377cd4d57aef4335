// What a command line says, in words: for the report, and for what decides a run's bytes.

#include <fmt/format.h>

#include "app/config.hpp"
#include "app/config_choice.hpp"

namespace atl {

namespace {

std::string text_of(const std::optional<int>& number) {
  return number ? std::to_string(*number) : "auto";
}
template <typename T>
std::string text_of(const T& value) {
  return text_of_choice(value);
}

using Items = std::vector<std::pair<std::string, std::string>>;

/// What a run computes, and how.
Items items_of_work(const RunOptions& o) {
  return {{"model", o.model},
          {"input", o.input},
          {"output", o.output},
          {"mode", text_of(o.mode)},
          {"format", text_of(o.format)},
          {"max-tokens", std::to_string(o.max_tokens)},
          {"seed", std::to_string(o.seed)},
          {"backend", text_of(o.backend)},
          {"dtype", text_of(o.dtype)},
          {"isa", text_of(o.isa)},
          {"chunks", text_of(o.chunks)},
          {"route", text_of(o.route)},
          {"slots", std::to_string(o.slots)},
          {"placement", o.placement},
          {"balance", text_of(o.balance)},
          {"balance-above", fmt::format("{}", o.balance_when.above)},
          {"balance-every", std::to_string(o.balance_when.every)},
          {"balance-pays-in", std::to_string(o.balance_when.pays_in)},
          {"balance-straggler", fmt::format("{}", o.balance_when.straggler)},
          {"check-experts", std::to_string(o.check_experts)},
          {"bias-block", std::to_string(o.bias.block)},
          {"max-bias", fmt::format("{}", o.bias.max_bias)},
          {"max-drift", fmt::format("{}", o.bias.max_drift)},
          {"bias-sample", std::to_string(o.bias.sample)},
          {"node-ranks", o.node_ranks},
          {"layout", o.layout},
          {"machine", o.machine},
          {"foreign-machine", o.foreign_machine ? "true" : "false"},
          {"replicas", std::to_string(o.division.replicas)},
          {"pp", std::to_string(o.division.pp)},
          {"tp", std::to_string(o.division.tp)},
          {"expert-tp", text_of(o.expert_tp)},
          {"tp-output", text_of(o.tp_output)},
          {"show-layout", o.show_layout ? "true" : "false"},
          {"no-overlap", o.no_overlap ? "true" : "false"},
          {"threads", std::to_string(o.threads)},
          {"transport", text_of(o.transport)}};
}

/// What it reads, writes and keeps beside that, and how much room it takes.
Items items_of_files_and_room(const RunOptions& o) {
  return {{"cluster", o.cluster},
          {"measure-links", o.measure_links ? "true" : "false"},
          {"report", o.report},
          {"status", o.status},
          {"trace", o.trace},
          {"dump-activations", o.dump_activations},
          {"activations", o.activations},
          {"record-routing", o.record_routing},
          {"replay-routing", o.replay_routing},
          {"share-prefixes", text_of(o.share_prefixes)},
          {"speculate", std::to_string(o.speculate)},
          {"hold-requests", std::to_string(o.hold_requests)},
          {"max-sequences", std::to_string(o.max_sequences)},
          {"step-tokens", std::to_string(o.step_tokens)},
          {"min-chunk-tokens", std::to_string(o.min_chunk_tokens)},
          {"memory-limit", fmt::format("{}", o.memory_gb)},
          {"kv-tokens", std::to_string(o.kv_tokens)},
          {"deadline", fmt::format("{}", o.deadline)},
          {"peak-tflops", fmt::format("{}", o.peak_tflops)},
          {"progress", text_of(o.progress)},
          {"checkpoint-dir", o.checkpoint_dir},
          {"checkpoint-every", o.checkpoint_every},
          {"resume", o.resume ? "true" : "false"},
          {"shard", o.shard},
          {"stage", o.stage},
          {"control", o.control},
          {"update", text_of(o.update)}};
}

}  // namespace

Items RunOptions::items() const {
  Items all = items_of_work(*this);
  const Items more = items_of_files_and_room(*this);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

Items CommandLine::items() const {
  switch (command) {
    case Command::run: {
      auto all = run.items();
      all.insert(all.begin(), {"command", "run"});
      return all;
    }
    case Command::init:
      return {{"command", "init"},     {"preset", init.preset},
              {"config", init.config}, {"seed", std::to_string(init.seed)},
              {"output", init.output}, {"deadline", fmt::format("{}", init.deadline)}};
    case Command::import:
      return {{"command", "import"},
              {"folder", import.folder},
              {"output", import.output},
              {"weights", std::string(name_of(import.weights))}};
    case Command::inspect:
      return {{"command", "inspect"}, {"file", inspect.file}};
    case Command::diff:
      return {{"command", "diff"},
              {"a", diff.a},
              {"b", diff.b},
              {"tolerance", fmt::format("{}", diff.tolerance)}};
    case Command::join:
      return {{"command", "join"},
              {"output", join.output},
              {"shards", std::to_string(join.shards)},
              {"keep-parts", join.keep_parts ? "true" : "false"}};
    case Command::tokenize:
      return {{"command", "tokenize"}, {"model", tokenize.model}, {"input", tokenize.input}};
    case Command::layout:
      return {{"command", "layout"}, {"ranks", std::to_string(layout.ranks)}};
    case Command::place:
      return {{"command", "place"}, {"routing", place.routing}, {"output", place.output}};
    case Command::plan:
      return {{"command", "plan"}, {"cluster", plan.cluster}, {"output", plan.output}};
    case Command::check:
      return {{"command", "check"},
              {"folder", check.folder},
              {"report", check.report},
              {"no-rates", check.no_rates ? "true" : "false"}};
    case Command::none:
      break;
  }
  return {{"command", "help"}};
}

}  // namespace atl
