#include "app/config_balance.hpp"

#include <fmt/format.h>

#include <cstdint>

#include "app/config_choice.hpp"
#include "app/plan/load_watch.hpp"
#include "compute/error.hpp"

namespace atl {

namespace {

constexpr std::int64_t many = std::int64_t{1} << 40;

void add_bias(CLI::App& app, RunOptions& o) {
  app.add_option(
         "--bias-block", o.bias.block,
         "--balance bias: lines of the input whose choices decide the offsets of the second "
         "block after them")
      ->check(CLI::Range(std::int64_t{1}, many))
      ->capture_default_str();
  app.add_option("--max-bias", o.bias.max_bias,
                 "--balance bias: the largest offset, in router probability")
      ->check(CLI::Range(0.0, 1e3))
      ->capture_default_str();
  app.add_option("--max-drift", o.bias.max_drift,
                 "--balance bias: mean change of log-probabilities, without their sign, from which "
                 "on no offset grows")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--bias-sample", o.bias.sample,
                 "--balance bias: every so many lines one is computed both ways")
      ->check(CLI::Range(std::int64_t{1}, many))
      ->capture_default_str();
}

}  // namespace

void add_run_balance(CLI::App& app, RunOptions& o) {
  add_choice(app, "--balance", o.balance, {Balance::none, Balance::replicate, Balance::bias},
             "Experts with many tokens get replicas while the run goes on, or fewer tokens, by "
             "offsets on the router's choice, which change results");
  app.add_option("--balance-above", o.balance_when.above,
                 "Rows of a layer's busiest rank (bias: expert) over the mean from which on it is")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--balance-every", o.balance_when.every, "Passes between two looks at loads")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--balance-pays-in", o.balance_when.pays_in,
                 "Passes in which a move has to save what it costs")
      ->check(CLI::Range(std::int64_t{1}, many))
      ->capture_default_str();
  app.add_option("--balance-straggler", o.balance_when.straggler,
                 "How many times as slow as others a rank is that gets no rows where other ranks "
                 "have its experts")
      ->check(CLI::Range(LoadWatch::slow_from, 1e6))
      ->capture_default_str();
  add_bias(app, o);
  app.add_option(
         "--check-experts", o.check_experts,
         "Passes between two checks of experts' weights in memory, one expert of each rank; "
         "0: none")
      ->check(CLI::Range(std::int64_t{0}, many))
      ->capture_default_str();
}

void check_run_balance(const CLI::App& app, const RunOptions& o) {
  const auto given_without = [&](const char* option, Balance wanted) {
    if (app.count(option) == 0 || o.balance == wanted) return;
    throw UsageError(fmt::format("{} says nothing without --balance {}", option, name_of(wanted)));
  };
  if (app.count("--balance-above") > 0 && o.balance == Balance::none) {
    throw UsageError("--balance-above says nothing without --balance replicate or bias");
  }
  for (const char* option : {"--balance-every", "--balance-pays-in", "--balance-straggler"})
    given_without(option, Balance::replicate);
  for (const char* option : {"--bias-block", "--max-bias", "--max-drift", "--bias-sample"})
    given_without(option, Balance::bias);
  if (o.balance != Balance::bias) return;
  // Choices are those of the model and of a file's requests alone there.
  for (const char* option :
       {"--record-routing", "--replay-routing", "--dump-activations", "--shard", "--control"}) {
    if (app.count(option) == 0) continue;
    throw UsageError(fmt::format(
        "{} and --balance bias do not go together: choices follow from the other requests of the "
        "run; leave one of them away",
        option));
  }
}

}  // namespace atl
