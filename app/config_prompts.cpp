#include "app/config_prompts.hpp"

#include "app/config_choice.hpp"

namespace atl {

void add_run_prompts(CLI::App& app, RunOptions& o) {
  add_choice(app, "--share-prefixes", o.share_prefixes,
             {SharePrefixes::automatic, SharePrefixes::off},
             "What prompts have in common at their beginning is computed once by each rank that "
             "has them");
}

}  // namespace atl
