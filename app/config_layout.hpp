#pragma once
// The options that say which rank does what.

#include <CLI/CLI.hpp>
#include <string>

#include "app/config.hpp"
#include "app/plan/job_layout.hpp"

namespace atl {

/// Who does what, in parts or by --layout.
void add_layout_parts(CLI::App& app, RunOptions& options);
/// The same with what a run may ask the planner.
void add_run_layout(CLI::App& app, RunOptions& options);
void add_foreign_machine(CLI::App& app, RunOptions& options);
/// Of an app that has --layout, and nobody who would choose one.
void refuse_auto_layout(CLI::App& app);

/// --chunks and --no-overlap.
void add_chunks(CLI::App& app, RunOptions& options);

/// --max-sequences and --step-tokens.
void add_pass_sizes(CLI::App& app, RunOptions& options);

/// The command that shows a layout.
CLI::App& add_layout(CLI::App& app, LayoutOptions& options);

/// How `num_ranks` are divided, as --layout says, or the options of its parts; by --expert-tp auto
/// each expert is with one rank. Throws UsageError where a layout cannot be read, or is not of so
/// many ranks.
Division division_of(const RunOptions& options, int num_ranks);
/// Whether memory decides how many ranks share an expert.
inline bool expert_tp_is_open(const RunOptions& options) {
  return options.layout.empty() && !options.expert_tp;
}

}  // namespace atl
