#include "app/config_prompts.hpp"

#include "app/config_choice.hpp"

namespace atl {

void add_run_prompts(CLI::App& app, RunOptions& o) {
  add_choice(app, "--share-prefixes", o.share_prefixes,
             {SharePrefixes::automatic, SharePrefixes::off},
             "What prompts have in common at their beginning is computed once by each rank that "
             "has them");
  app.add_option(
         "--speculate", o.speculate,
         "Guess so many tokens at most that a sequence generates next, from what followed the "
         "last ones before, and check them in one pass; 0: none")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app.add_option(
         "--hold-requests", o.hold_requests,
         "MiB of waiting requests that are held in memory by the rank that reads them; what "
         "is beyond is read again when its turn comes")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
}

}  // namespace atl
